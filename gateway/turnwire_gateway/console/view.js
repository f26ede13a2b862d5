// Turns a folded turn into elements. Text is always set as text: nothing a model or a document says becomes markup.

import { content } from "./api.js";
import { seconds } from "./fold.js";

/** Makes an element; children are elements, texts, or nothing. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element && key !== "role") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const POINTS = {
  INPUT: "on the message",
  OUTPUT: "on the answer",
  TOOL_ARGUMENTS: "on a call's arguments",
  TOOL_RESULT: "on a tool's result",
  RETRIEVAL: "on what was retrieved",
  MEMORY_WRITE: "on what is kept",
};
const NAMES = {
  SHIELD_CALL: "Shields",
  MEMORY_RETRIEVAL: "Retrieval",
  INFERENCE: "Model",
  TOOL_EXECUTION: "Tools",
  COMPACTION: "Summary",
  SUB_AGENT: "Agent",
};
const STATES = {
  running: " (runs)", done: "", failed: " (failed)", stopped: " (stopped the turn)", warned: "", left: " (left)",
};

const plain = (value, prefix) => (value ?? "").replace(prefix, "").toLowerCase().replaceAll("_", " ");
const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** One turn on the page. `say` answers what it waits for. */
export class TurnView {
  #steps = new Map();
  #files = new Map();
  #asked = new Map();

  constructor(turn, typed, say) {
    this.turn = turn;
    this.typed = typed;
    this.say = say;
    this.said = make("div", { className: "said" });
    this.steps = make("ol", { className: "steps", "aria-label": "Steps of the turn" });
    this.notices = make("div");
    this.answer = make("div", { className: "answer", "aria-live": "polite" });
    this.figures = make("div", { className: "figures" });
    this.sources = make("div");
    this.asks = make("div");
    this.facts = make("p", { className: "facts" });
    this.element = make(
      "article",
      { className: "turn", "aria-label": "Turn", id: turn.id },
      this.said, this.steps, this.notices, this.asks, this.answer, this.figures, this.sources, this.facts,
    );
  }

  /** Brings the elements up to the state of the turn. */
  draw() {
    this.#drawSaid();
    for (const step of this.turn.steps) this.#drawStep(step);
    this.steps.hidden = !this.turn.steps.length;
    this.#drawNotices();
    this.#drawAnswer();
    this.#drawAsks();
    this.#drawFiles();
    this.#drawFacts();
  }

  #drawSaid() {
    const messages = this.turn.input;
    const text = messages.map((message) => textOf(message)).join("\n\n") || this.typed;
    const files = messages.flatMap((message) => message.attachments ?? []).map((file) => file.name || "a file");
    const shown = text || (this.turn.steps.length ? "A shield keeps this message back." : "…");
    redraw(this.said, `${shown}\0${files}`, () => [
      shown,
      files.length ? make("div", { className: "files" }, `With ${files.join(", ")}`) : null,
    ]);
  }

  #drawStep(step) {
    let drawn = this.#steps.get(step.id);
    if (!drawn) {
      const kind = make("span", { className: "kind" }, NAMES[step.type] ?? plain(step.type));
      const gist = make("span", { className: "gist" });
      const time = make("span", { className: "time" });
      const inside = make("div", { className: "inside" });
      const details = make("details", {}, make("summary", {}, kind, gist, time), inside);
      const item = make("li", { className: "step" }, details);
      drawn = { gist, time, inside, item, details };
      this.#steps.set(step.id, drawn);
      this.steps.append(item);
      details.addEventListener("toggle", () => this.#drawInside(step, drawn));
    }
    const changed = drawn.item.dataset.state !== step.state;
    drawn.item.dataset.state = step.state;
    if (changed && step.state === "stopped") drawn.details.open = true;
    setText(drawn.gist, gistOf(step).trimEnd() + STATES[step.state]);
    setText(drawn.time, step.end ? seconds(step.start, step.end) : "");
    this.#drawInside(step, drawn);
  }

  #drawInside(step, drawn) {
    if (!drawn.details.open) return;
    const calls = step.calls.map((call) => [call.args.text.length, call.output.text.length, call.result, call.start]);
    const key = JSON.stringify([step.state, step.answer.text.length, step.reasoning.text.length, calls, step.progress, step.restarts.length]);
    redraw(drawn.inside, key, () => insideOf(step));
  }

  #drawNotices() {
    const { turn } = this;
    const key = JSON.stringify([turn.status, turn.failure, turn.reason, turn.steps.map((step) => step.state)]);
    redraw(this.notices, key, () => {
      const found = [];
      for (const step of turn.steps) {
        for (const verdict of step.result.verdicts ?? []) {
          if (verdict.level === "VIOLATION_LEVEL_ERROR") found.push(violation(step, verdict));
        }
      }
      if (turn.status === "failed") found.push(notice("bad", "The turn failed", failureText(turn.failure)));
      if (turn.status === "cancelled") found.push(notice("warn", "The turn was cancelled", turn.reason));
      return found;
    });
  }

  #drawAnswer() {
    const { turn } = this;
    const text = turn.answer;
    this.answer.setAttribute("aria-busy", String(!turn.over && text !== ""));
    const citations = turn.output?.citations ?? [];
    redraw(this.answer, `${text}\0${citations.length}`, () => paragraphs(text, turn.id));
    redraw(this.sources, `${citations.length}`, () => {
      if (!citations.length) return [];
      const chunks = new Map(turn.steps.flatMap((step) => step.result.chunks ?? []).map((chunk) => [chunk.chunkId, chunk]));
      return [make("h2", {}, "Sources"), make("ol", { className: "sources" }, numbered(citations, turn.steps).map(([number, cited]) => source(turn.id, number, cited, chunks)))];
    });
  }

  #drawAsks() {
    const open = new Set(this.turn.requests.map((request) => request.call?.callId));
    for (const [callId, element] of this.#asked) {
      if (!open.has(callId)) {
        element.remove();
        this.#asked.delete(callId);
      }
    }
    for (const request of this.turn.requests) {
      const callId = request.call?.callId;
      if (this.#asked.has(callId)) continue;
      const element = ask(request, this.turn.call(callId), this.say);
      this.#asked.set(callId, element);
      this.asks.append(element);
    }
  }

  #drawFiles() {
    const made = this.turn.steps.flatMap((step) => step.calls).flatMap((call) => call.result?.attachments ?? []);
    for (const file of [...made, ...(this.turn.output?.attachments ?? [])]) {
      const key = file.artifactId || file.url || `${file.name}:${file.data?.length ?? file.text?.length}`;
      if (this.#files.has(key)) continue;
      const element = figure(file);
      this.#files.set(key, element);
      this.figures.append(element);
    }
    this.figures.hidden = !this.#files.size;
  }

  #drawFacts() {
    const { turn } = this;
    const told = [];
    if (turn.over && turn.startTime) told.push(seconds(turn.startTime, turn.endTime));
    if (turn.usage) told.push(`${turn.usage.promptTokens ?? 0} tokens read, ${turn.usage.completionTokens ?? 0} written`);
    if (turn.output?.stopReason === "STOP_REASON_SHIELD") told.push("answered by a shield");
    if (turn.output?.stopReason === "STOP_REASON_OUT_OF_TOKENS") told.push("cut at the limit of tokens");
    if (turn.output?.stopReason === "STOP_REASON_MAX_ITERATIONS") told.push("stopped at the limit of iterations");
    setText(this.facts, told.join(" · "));
  }
}

const drawn = new WeakMap();

/** Makes the children anew where the key, what they are made from, has changed. */
function redraw(element, key, children) {
  if (drawn.get(element) === key) return;
  drawn.set(element, key);
  element.replaceChildren(...children().flat().filter((child) => child !== null && child !== ""));
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const textOf = (message) => (message.parts ?? []).map((part) => part.text ?? "").join("");
const failureText = (failure) => failure?.message ?? "No reason was given.";

function notice(kind, title, ...lines) {
  return make("div", { className: `notice ${kind}`, role: "alert" }, make("strong", {}, title), lines.filter(Boolean).map((line) => make("p", {}, line)));
}

function violation(step, verdict) {
  const where = POINTS[(step.plan.point ?? "").replace("SHIELD_POINT_", "")] ?? "";
  const categories = (verdict.categories ?? []).join(", ");
  const why = verdict.failure ? failureText(verdict.failure) : categories;
  return notice("bad", "A shield stopped this turn", `${verdict.shieldId} ${where}${why ? `: ${why}` : ""}`);
}

function gistOf(step) {
  const { plan, result } = step;
  switch (step.type) {
    case "SHIELD_CALL": {
      const found = (result.verdicts ?? []).filter((verdict) => verdict.level);
      const where = POINTS[(plan.point ?? "").replace("SHIELD_POINT_", "")] ?? "";
      const said = found.map((verdict) => (verdict.categories ?? []).join(", ") || plain(verdict.level, "VIOLATION_LEVEL_"));
      return `${(plan.shieldIds ?? []).join(", ")} ${where}${said.length ? `: ${said.join("; ")}` : ""}`;
    }
    case "MEMORY_RETRIEVAL":
      return step.state === "running"
        ? `${(plan.bankIds ?? []).join(", ")} ${progressText(step)}`
        : `${many((result.chunks ?? []).length, "excerpt")} from ${(plan.bankIds ?? []).join(", ") || "no bank"}`;
    case "INFERENCE": {
      const calls = step.calls.map((call) => call.name).filter(Boolean);
      return `${plan.modelId ?? ""}${calls.length ? `, calls ${calls.join(", ")}` : ""}`;
    }
    case "TOOL_EXECUTION":
      return `${step.calls.map((call) => call.name || "a tool").join(", ")} ${progressText(step)}`;
    case "SUB_AGENT":
      return plan.agentId ?? "";
    default:
      return progressText(step);
  }
}

function progressText({ progress, state }) {
  if (!progress || state !== "running") return "";
  return Number(progress.total ?? 0) ? `${progress.done ?? 0} of ${progress.total} ${progress.unit ?? ""}` : `${progress.done ?? 0} ${progress.unit ?? ""}`;
}

function insideOf(step) {
  const { plan, result } = step;
  const parts = step.restarts.map((restart) => make("p", {}, `Began anew (${restart.attempt}): ${failureText(restart.cause)}`));
  if (step.failure) parts.push(make("p", {}, failureText(step.failure)));
  switch (step.type) {
    case "SHIELD_CALL":
      for (const verdict of result.verdicts ?? []) parts.push(verdictOf(verdict));
      break;
    case "MEMORY_RETRIEVAL":
      if (result.query) parts.push(facts({ query: result.query }));
      for (const chunk of result.chunks ?? []) parts.push(excerpt(chunk));
      for (const [name, failure] of Object.entries(result.refusedDocuments ?? {})) parts.push(make("p", {}, `${name}: ${failureText(failure)}`));
      break;
    case "INFERENCE": {
      const { usage } = result;
      parts.push(facts({
        model: [plan.providerId, plan.modelId].filter(Boolean).join("/"),
        iteration: step.iteration,
        "first token": result.timeToFirstToken ? seconds(result.timeToFirstToken) : "",
        tokens: usage ? `${usage.promptTokens ?? 0} read${usage.cachedTokens ? ` (${usage.cachedTokens} cached)` : ""}, ${usage.completionTokens ?? 0} written` : "",
        "ended with": plain(result.stopReason, "STOP_REASON_"),
      }));
      if (step.reasoning.text) parts.push(make("h3", {}, "Reasoning"), make("pre", {}, step.reasoning.text));
      if (step.answer.text) parts.push(make("h3", {}, "Text"), make("pre", {}, step.answer.text));
      for (const call of step.calls) parts.push(callOf(call, false));
      break;
    }
    case "TOOL_EXECUTION":
      for (const call of step.calls) parts.push(callOf(call, true));
      break;
    case "COMPACTION":
      if (result.summary) parts.push(make("pre", {}, result.summary));
      break;
    default:
      parts.push(facts(plan));
  }
  return parts.length ? parts : [make("p", { className: "hint" }, "Nothing yet.")];
}

function facts(found) {
  const rows = Object.entries(found).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  return make("dl", {}, rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
}

function verdictOf(verdict) {
  return facts({
    shield: verdict.shieldId,
    "told the user": verdict.userMessage,
    verdict: verdict.level ? plain(verdict.level, "VIOLATION_LEVEL_") : "nothing found",
    found: (verdict.categories ?? []).join(", "),
    replaced: (verdict.redactions ?? []).map((redaction) => `${redaction.category} by ${redaction.replacement}`).join(", "),
    failure: verdict.failure ? failureText(verdict.failure) : "",
    ...(verdict.metadata ?? {}),
  });
}

function excerpt(chunk) {
  return make("div", { className: "chunk" }, make("cite", {}, placeOf(chunk)), make("pre", {}, chunk.text ?? ""));
}

function placeOf(found) {
  const parts = [found.title || found.uri || found.documentId, found.heading, found.page ? `page ${found.page}` : ""];
  return parts.filter(Boolean).join(" › ");
}

function callOf(call, withResult) {
  const result = call.result;
  const state = result ? (result.failure ? "failed" : "") : !call.start ? "" : call.byCaller ? "waits for you" : "runs";
  const time = call.start && call.end ? seconds(call.start, call.end) : state;
  const parts = [make("h3", {}, call.name || "a tool", make("span", { className: "time" }, time))];
  if (call.args.text) parts.push(...argumentsOf(call.args.text));
  if (withResult) {
    const output = result?.content || call.output.text;
    if (output) parts.push(make("h3", {}, "Output"), make("pre", {}, output));
    if (result?.failure) parts.push(make("p", {}, failureText(result.failure)));
  }
  return make("div", { className: "call" }, parts);
}

/** Arguments by name, code as code; what is no JSON yet as it is. */
function argumentsOf(text) {
  try {
    const found = JSON.parse(text);
    return Object.entries(found).flatMap(([name, value]) => {
      const shown = typeof value === "string" ? value : JSON.stringify(value, null, 1);
      return shown.length > 60 || shown.includes("\n") ? [make("h3", {}, name), make("pre", {}, shown)] : [facts({ [name]: shown })];
    });
  } catch {
    return [make("pre", {}, text)];
  }
}

/** Text in paragraphs, fenced code apart, marks as [1] led to their sources. */
function paragraphs(text, turnId) {
  return text.split(/^```[^\n]*\n([\s\S]*?)(?:^```[^\S\n]*$|(?![\s\S]))/m).flatMap((piece, index) => {
    if (index % 2) return [make("pre", {}, make("code", {}, piece.replace(/\n$/, "")))];
    return piece.split(/\n{2,}/).filter((paragraph) => paragraph.trim()).map((paragraph) => make("p", {}, inline(paragraph.trim(), turnId)));
  });
}

function inline(text, turnId) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*|\[\d{1,2}\])/).map((piece) => {
    if (/^`.+`$/.test(piece)) return make("code", {}, piece.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(piece)) return make("strong", {}, piece.slice(2, -2));
    if (/^\[\d+\]$/.test(piece)) return make("a", { className: "mark", href: `#${turnId}-source-${piece.slice(1, -1)}` }, piece);
    return piece;
  });
}

/** Citations once each, under the number that the answer's marks use: the place of the excerpt among the retrieved. */
function numbered(citations, steps) {
  const order = steps.flatMap((step) => step.result.chunks ?? []).map((chunk) => chunk.chunkId);
  const found = new Map();
  for (const cited of citations) {
    const place = order.indexOf(cited.chunkId);
    const number = place < 0 ? order.length + found.size + 1 : place + 1;
    if (!found.has(cited.chunkId)) found.set(cited.chunkId, [number, cited]);
  }
  return [...found.values()].sort(([one], [other]) => one - other);
}

function source(turnId, number, cited, chunks) {
  const chunk = chunks.get(cited.chunkId);
  const told = chunk?.text ? make("details", {}, make("summary", {}, placeOf(cited)), make("blockquote", {}, chunk.text)) : placeOf(cited);
  return make("li", { id: `${turnId}-source-${number}`, value: number }, told);
}

function figure(file) {
  const name = file.name || file.artifactId || file.url || "file";
  if (file.url) return make("figure", {}, make("figcaption", {}, make("a", { href: safe(file.url), rel: "noreferrer noopener", target: "_blank" }, name)));
  const element = make("figure", {}, make("figcaption", {}, name));
  if ((file.mimeType ?? "").startsWith("image/")) {
    content(file)
      .then((blob) => element.prepend(make("img", { src: URL.createObjectURL(blob), alt: name })))
      .catch((error) => element.append(make("p", { className: "hint" }, error.message)));
    return element;
  }
  const button = make("button", { type: "button", className: "quiet" }, `Save ${name}`);
  button.addEventListener("click", async () => {
    try {
      const link = make("a", { href: URL.createObjectURL(await content(file)), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      button.after(make("p", { className: "hint" }, error.message));
    }
  });
  element.replaceChildren(button);
  return element;
}

const safe = (url) => (/^https?:/i.test(url) ? url : "#");

/** A form for what a turn waits for. */
function ask(request, call, say) {
  const callId = request.call.callId;
  const kind = plain(request.kind, "INPUT_KIND_");
  const id = `ask-${callId}`;
  const shown = { ...call, args: { text: request.call.argumentsJson || call.args.text }, name: request.call.name || call.name };
  const field = make(kind === "credential" ? "input" : "textarea", { id, rows: 4, spellcheck: false });
  if (kind === "credential") field.type = "password";
  const failed = make("p", { className: "hint", role: "alert" });
  const form = make("form", { className: "ask" }, make("h2", {}, TITLES[kind] ?? `This turn waits: ${kind}`), callOf(shown, false));
  const send = async (input) => {
    for (const button of form.querySelectorAll("button")) button.disabled = true;
    try {
      await say(input);
    } catch (error) {
      failed.textContent = error.message;
      for (const button of form.querySelectorAll("button")) button.disabled = false;
    }
  };
  const button = (label, input, quiet = false) => {
    const made = make("button", { type: quiet ? "button" : "submit", className: quiet ? "quiet" : "" }, label);
    const event = quiet ? "click" : "submit";
    (quiet ? made : form).addEventListener(event, (happened) => {
      happened.preventDefault();
      send(input());
    });
    return made;
  };
  const result = () => ({ callId, name: shown.name, content: field.value });
  const label = (text) => make("label", { htmlFor: id }, text);
  const row = (...buttons) => form.append(make("div", { className: "row" }, buttons), failed);
  if (kind === "approval") {
    form.append(label("Why (optional)"), field);
    field.rows = 1;
    const answer = (approved) => () => ({ approval: { callId, approved, reason: field.value } });
    row(button("Approve", answer(true)), button("Deny", answer(false), true));
  } else if (kind === "outcome decision") {
    form.append(label("Its result, if you know it"), field);
    const choose = (choice) => () => ({ outcomeDecision: { callId, choice, ...(choice === "CHOICE_PROVIDE" ? { result: result() } : {}) } });
    row(button("Take this result", choose("CHOICE_PROVIDE")), button("Call it again", choose("CHOICE_RETRY"), true), button("Go on without", choose("CHOICE_SKIP"), true));
  } else if (kind === "credential") {
    form.append(label("The authorization header for this tool"), field);
    row(button("Send", () => ({ credential: { callId, authorization: field.value } })));
  } else {
    form.append(label("Its result: text, or one JSON value"), field);
    const broken = () => ({ toolResult: { ...result(), failure: { reason: "ERROR_REASON_TOOL_FAILED", message: field.value || "It failed." } } });
    row(button("Send the result", () => ({ toolResult: result() })), button("It failed", broken, true));
  }
  return form;
}

const TITLES = {
  "tool result": "This turn waits for a result of yours",
  approval: "This turn waits for your approval",
  "outcome decision": "What became of this call is not known",
  credential: "This tool wants your credential",
};
