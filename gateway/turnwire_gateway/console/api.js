// Talks with the gateway: Connect JSON for calls, server-sent events for turns, artifacts by their own routes.

const KEY = "turnwire-api-key";
const AGENT = "turnwire.agent.v1.AgentService";

/** An answer that is an error, with its Connect code and HTTP status. */
export class Failure extends Error {
  constructor(code, message, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}`, ...more } : more;
}

async function failureOf(response) {
  const text = await response.text();
  try {
    const told = JSON.parse(text);
    return new Failure(told.code ?? "unknown", told.message ?? text, response.status);
  } catch {
    return new Failure("unknown", text || `HTTP ${response.status}`, response.status);
  }
}

/** Calls a unary method of AgentService. */
export async function call(method, request) {
  const response = await fetch(`/${AGENT}/${method}`, {
    method: "POST",
    headers: headers({ "content-type": "application/json", "connect-protocol-version": "1" }),
    body: JSON.stringify(request),
  });
  if (!response.ok) throw await failureOf(response);
  return response.json();
}

/** Starts a turn and returns once it was accepted; its events are read with `watchTurn`. */
export async function startTurn(request) {
  const body = new TextEncoder().encode(JSON.stringify(request));
  const sent = new Uint8Array(5 + body.length);
  new DataView(sent.buffer).setUint32(1, body.length);
  sent.set(body, 5);
  const leaving = new AbortController();
  const response = await fetch(`/${AGENT}/RunTurn`, {
    method: "POST",
    headers: headers({ "content-type": "application/connect+json", "connect-protocol-version": "1" }),
    body: sent,
    signal: leaving.signal,
  });
  if (!response.ok) throw await failureOf(response);
  try {
    const [flags, told] = await firstEnvelope(response.body.getReader());
    if (flags & 2 && told.error) throw new Failure(told.error.code, told.error.message ?? "", 200);
  } finally {
    leaving.abort(); // the turn goes on; leaving is not cancelling
  }
}

async function firstEnvelope(reader) {
  let got = new Uint8Array();
  for (;;) {
    const size = got.length < 5 ? Infinity : new DataView(got.buffer, got.byteOffset).getUint32(1);
    if (got.length >= 5 + size) return [got[0], JSON.parse(new TextDecoder().decode(got.subarray(5, 5 + size)))];
    const { done, value } = await reader.read();
    if (done) throw new Failure("unavailable", "The connection was cut.", 0);
    const joined = new Uint8Array(got.length + value.length);
    joined.set(got);
    joined.set(value, got.length);
    got = joined;
  }
}

/**
 * Reads the events of a turn after a number and gives each to `take`; comes back by itself where the stream is cut.
 * Returns when the turn is over.
 */
export async function watchTurn(turnId, after, take, { signal, cut }) {
  let last = after;
  let wait = 250;
  for (;;) {
    try {
      const address = `/v1/turns/${encodeURIComponent(turnId)}/events?follow_pauses=true`;
      const response = await fetch(address, { headers: headers({ "last-event-id": String(last) }), signal });
      if (response.status === 204) return;
      if (!response.ok) throw await failureOf(response);
      for await (const [name, id, data] of frames(response.body)) {
        if (name === "stream_failed") {
          const told = JSON.parse(data);
          throw new Failure(told.code, told.message, 200);
        }
        wait = 250;
        last = Math.max(last, Number(id));
        if (take(JSON.parse(data))) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      const passing = !(error instanceof Failure) || ["unavailable", "canceled"].includes(error.code);
      if (!passing) throw error;
    }
    cut(wait);
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 2, 5000);
  }
}

async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const whole = rest.split("\n\n");
    rest = whole.pop();
    for (const frame of whole) {
      const fields = {};
      for (const line of frame.split("\n")) {
        const colon = line.indexOf(":");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
      }
      if (fields.data !== undefined) yield [fields.event, fields.id, fields.data];
    }
  }
}

/** Keeps a file and returns what is known of it. */
export async function upload(file, sessionId) {
  const query = new URLSearchParams({ name: file.name, session_id: sessionId });
  const response = await fetch(`/v1/artifacts?${query}`, {
    method: "PUT",
    headers: headers(file.type ? { "content-type": file.type } : {}),
    body: file,
  });
  if (!response.ok) throw await failureOf(response);
  return response.json();
}

/** Returns the content of an attachment as a Blob: an artifact's, or what travelled within the message. */
export async function content(attachment) {
  if (attachment.artifactId) {
    const response = await fetch(`/v1/artifacts/${encodeURIComponent(attachment.artifactId)}`, { headers: headers() });
    if (!response.ok) throw await failureOf(response);
    return response.blob();
  }
  if (attachment.data) {
    const bytes = Uint8Array.from(atob(attachment.data), (character) => character.charCodeAt(0));
    return new Blob([bytes], { type: attachment.mimeType });
  }
  return new Blob([attachment.text ?? ""], { type: "text/plain" });
}
