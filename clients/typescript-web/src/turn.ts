// Runs a turn and folds its text, over whatever transport it is given.

import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { AgentService } from "./gen/turnwire/agent/v1/agent_service_pb.js";
import { DeltaPart, type StepEvent } from "./gen/turnwire/agent/v1/event_pb.js";
import type { Turn } from "./gen/turnwire/agent/v1/turn_pb.js";
import { Role } from "./gen/turnwire/common/v1/message_pb.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A text that grows by pieces at UTF-8 offsets: `text = text[:offset] + piece`. */
export function fold(text: string, offset: bigint, piece: string): string {
  return decoder.decode(encoder.encode(text).subarray(0, Number(offset))) + piece;
}

/** What a caller knows of a turn it has run. */
export interface Ran {
  turn: Turn | undefined;
  text: string;
  events: string[];
  resumed: number;
}

/** Runs a turn; a stream that is cut goes on with WatchTurn after the last number that was seen. */
export async function runTurn(transport: Transport, agentId: string, message: string, cutAfter = 0): Promise<Ran> {
  const client = createClient(AgentService, transport);
  const { session } = await client.createSession({ agentId });
  const turnId = `turn_${crypto.randomUUID().replaceAll("-", "")}`;
  const messages = [{ role: Role.USER, parts: [{ content: { case: "text" as const, value: message } }] }];
  const ran: Ran = { turn: undefined, text: "", events: [], resumed: 0 };
  let last = 0n;
  let over = false;
  while (!over) {
    const leaving = new AbortController();
    const options = { signal: leaving.signal };
    const stream =
      last === 0n
        ? client.runTurn({ sessionId: session?.sessionId ?? "", turnId, messages }, options)
        : client.watchTurn({ turnId, afterSequence: last }, options);
    try {
      for await (const event of stream) {
        last = event.sequence;
        over = took(ran, event);
        if (cutAfter !== 0 && ran.events.length === cutAfter) leaving.abort();
      }
    } catch (error) {
      const code = ConnectError.from(error).code;
      if (code !== Code.Canceled && code !== Code.Unavailable) throw error;
      ran.resumed += 1;
    }
  }
  ran.turn = (await client.getTurn({ turnId })).turn;
  return ran;
}

function took(ran: Ran, event: StepEvent): boolean {
  const { payload } = event;
  ran.events.push(payload.case ?? "unknown");
  switch (payload.case) {
    case "stepDelta":
      if (payload.value.part === DeltaPart.ANSWER) ran.text = fold(ran.text, payload.value.offset, payload.value.text);
      return false;
    case "turnCompleted":
    case "turnFailed":
    case "turnCancelled":
      return true;
    default:
      return false;
  }
}
