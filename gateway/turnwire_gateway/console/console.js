// The page: chooses an agent, sends messages, follows turns, and finds them again after a reload.

import { Failure, call, keepKey, startTurn, upload, watchTurn } from "./api.js";
import { Turn, seconds } from "./fold.js";
import { TurnView, make } from "./view.js";

const byId = (id) => document.getElementById(id);
const [agents, turns, status, composer, message, files, attached, send, stop, access] = [
  "agent", "turns", "status", "composer", "message", "files", "attached", "send", "stop", "access",
].map(byId);
const SHOWN_TURNS = 50;

let session = "";
let present = null; // the turn that runs: { turn, view, leaving }
let drawing = 0;
const followed = new Set(); // all turns whose events still come, the earlier ones of the session too

function say(text, bad = false) {
  if (status.textContent !== text) status.textContent = text;
  status.classList.toggle("bad", bad);
}

/** Runs something that talks with the mesh; says what failed, and asks for a key where one is wanted. */
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Failure && error.code === "unauthenticated") {
      access.hidden = false;
      byId("key").focus();
      say("This mesh wants an API key.", true);
    } else {
      say(error instanceof Failure ? error.message : `The gateway cannot be reached: ${error.message}`, true);
    }
    return undefined;
  }
}

// Where the page is: the session and its agent stand in the address, so that a reload and a link find them.

function place() {
  const query = new URLSearchParams({ agent: agents.value });
  if (session) query.set("session", session);
  history.replaceState(null, "", `?${query}`);
}

async function begin() {
  const listed = await attempt(() => call("ListAgents", { pageSize: 200 }));
  if (!listed) return;
  access.hidden = true;
  say("");
  const asked = new URLSearchParams(location.search);
  agents.replaceChildren(
    ...(listed.agents ?? []).map((agent) => make("option", { value: agent.agentId }, agent.name || agent.agentId)),
  );
  agents.disabled = false;
  if ([...agents.options].some((option) => option.value === asked.get("agent"))) agents.value = asked.get("agent");
  session = asked.get("session") ?? "";
  if (session) await attempt(restore);
  place();
  busy();
  message.focus();
}

async function restore() {
  const found = (await call("ListTurns", { sessionId: session, pageSize: SHOWN_TURNS })).turns ?? [];
  // All at once, each in its place: finished ones are read to their end, the one that runs is followed.
  for (const { turnId } of found) follow(turnId, "");
}

// Turns

function follow(turnId, typed) {
  byId("empty")?.remove();
  const turn = new Turn(turnId);
  const leaving = new AbortController();
  const view = new TurnView(turn, typed, (input) => call("SubmitTurnInput", { turnId, inputs: [input] }));
  const here = { turn, view, leaving };
  followed.add(here);
  turns.append(view.element);
  present = here;
  view.draw();
  toEnd(true);
  const watching = attempt(() =>
    watchTurn(turnId, 0, (event) => took(here, event), {
      signal: leaving.signal,
      cut: () => here === present && say("The connection was cut; it comes back by itself."),
    }),
  ).finally(() => {
    here.closed = true;
    followed.delete(here);
    draw(here);
  });
  return watching;
}

function took(here, event) {
  here.turn.take(event);
  here.dirty = true;
  if (!drawing) drawing = requestAnimationFrame(drawAll);
  here.silent = event.heartbeat !== undefined;
  all.add(here);
  return here.turn.over;
}

const all = new Set();

function drawAll() {
  drawing = 0;
  for (const here of all) draw(here);
  all.clear();
}

function draw(here) {
  const atEnd = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80;
  here.view.draw();
  if (here === present) {
    tell(here.turn);
    busy();
    toEnd(atEnd);
  }
}

function tell(turn) {
  const running = turn.steps.findLast((step) => step.state === "running");
  const words = {
    INFERENCE: turn.answer ? "The model answers…" : "The model reads…",
    TOOL_EXECUTION: "Tools run…",
    SHIELD_CALL: "Shields look at it…",
    MEMORY_RETRIEVAL: "Banks are searched…",
    COMPACTION: "Earlier turns are summed up…",
    SUB_AGENT: "Another agent works…",
  };
  const ends = { completed: "Done", failed: "The turn failed", cancelled: "Cancelled" };
  if (turn.over) say(`${ends[turn.status]}${turn.startTime ? ` in ${seconds(turn.startTime, turn.endTime)}` : ""}.`, turn.status === "failed");
  else if (turn.status === "waiting") say("The turn waits for you.");
  else say([words[running?.type] ?? "The turn runs…", turn.note].filter(Boolean).join(" "));
}

function busy() {
  const running = present !== null && !present.turn.over && !present.closed;
  stop.hidden = !running;
  send.disabled = running || agents.disabled;
}

function toEnd(wanted) {
  if (wanted) turns.scrollTop = turns.scrollHeight;
}

// What the user does

async function submit() {
  const text = message.value.trim();
  if (send.disabled || (!text && !files.files.length)) return;
  send.disabled = true;
  const done = await attempt(async () => {
    if (!session) session = (await call("CreateSession", { agentId: agents.value, title: text.slice(0, 80) })).session.sessionId;
    place();
    const attachments = [];
    for (const file of files.files) {
      say(`${file.name} is sent…`);
      const kept = await upload(file, session);
      attachments.push({ artifactId: kept.artifactId, name: kept.name, mimeType: kept.mimeType });
    }
    const turnId = `turn_${crypto.getRandomValues(new Uint8Array(16)).reduce((hex, byte) => hex + byte.toString(16).padStart(2, "0"), "")}`;
    const parts = text ? [{ text }] : [];
    say("The turn begins…");
    await startTurn({ sessionId: session, turnId, messages: [{ role: "ROLE_USER", parts, attachments }] });
    return turnId;
  });
  if (!done) {
    busy();
    return;
  }
  message.value = "";
  files.value = "";
  attached.textContent = "";
  follow(done, text);
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
files.addEventListener("change", () => {
  attached.textContent = [...files.files].map((file) => file.name).join(", ");
});
stop.addEventListener("click", async () => {
  stop.disabled = true;
  await attempt(() => call("CancelTurn", { turnId: present.turn.id, reason: "stopped in the console" }));
  stop.disabled = false;
});
function leave() {
  for (const element of turns.querySelectorAll(".turn")) element.remove();
  for (const here of followed) here.leaving.abort();
  present = null;
  session = "";
  say("");
  place();
  busy();
  message.focus();
}
byId("fresh").addEventListener("click", leave);
agents.addEventListener("change", leave);
access.addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value);
  byId("key").value = "";
  begin();
});

begin();
