// The page: `?gateway=URL&protocol=connect|connect-json|grpc-web&agent=ID&message=…&cut=N`.

import { ConnectError, type Transport, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { AgentService } from "./gen/turnwire/agent/v1/agent_service_pb.js";
import { runTurn } from "./turn.js";

function transportOf(protocol: string, baseUrl: string): Transport {
  switch (protocol) {
    case "connect":
      return createConnectTransport({ baseUrl, useBinaryFormat: true });
    case "connect-json":
      return createConnectTransport({ baseUrl });
    case "grpc-web":
      return createGrpcWebTransport({ baseUrl });
    default:
      throw new Error(`no such protocol: ${protocol}`);
  }
}

function show(id: string, ...lines: string[]): void {
  const element = document.getElementById(id);
  if (element === null) return;
  element.replaceChildren(
    ...lines.map((line) => {
      const item = document.createElement(id === "events" ? "li" : "span");
      item.textContent = line;
      return item;
    }),
  );
}

async function main(): Promise<void> {
  const asked = new URLSearchParams(location.search);
  const transport = transportOf(asked.get("protocol") ?? "connect", asked.get("gateway") ?? location.origin);
  try {
    await createClient(AgentService, transport).getTurn({ turnId: "turn_none" });
  } catch (error) {
    const failed = ConnectError.from(error);
    show("failure", `${failed.code} ${failed.rawMessage} (${failed.details.length} details)`);
  }
  const ran = await runTurn(transport, asked.get("agent") ?? "assistant", asked.get("message") ?? "hello", Number(asked.get("cut") ?? 0));
  const output = (ran.turn?.output?.parts ?? []).map((part) => (part.content.case === "text" ? part.content.value : ""));
  show("text", ran.text);
  show("events", ...ran.events);
  show("state", output.join("") === ran.text ? `done, resumed ${ran.resumed} times` : "the fold is not the turn");
}

main().catch((error: unknown) => show("state", `failed: ${String(error)}`));
