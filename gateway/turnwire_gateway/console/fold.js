// The fold of a turn's events: the same state as the service's, as far as the page shows it.

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A text that grows by pieces at UTF-8 offsets: text = text[:offset] + piece. */
class Text {
  text = "";
  #bytes = 0;

  put(offset, piece) {
    if (offset !== this.#bytes) this.text = decoder.decode(encoder.encode(this.text).subarray(0, offset));
    this.text += piece;
    this.#bytes = offset + encoder.encode(piece).length;
  }
}

export class Turn {
  id;
  status = "running"; // running, waiting, completed, failed, cancelled
  sequence = 0;
  input = [];
  steps = [];
  requests = [];
  expires = "";
  output = null;
  outputStep = "";
  failure = null;
  reason = "";
  usage = null;
  startTime = "";
  endTime = "";
  note = "";
  #byId = new Map();
  #calls = new Map();

  constructor(id) {
    this.id = id;
  }

  get over() {
    return ["completed", "failed", "cancelled"].includes(this.status);
  }

  call(callId) {
    if (!this.#calls.has(callId)) this.#calls.set(callId, { callId, name: "", args: new Text(), output: new Text() });
    return this.#calls.get(callId);
  }

  /** The text of the answer as far as it is there. */
  get answer() {
    if (this.output) return (this.output.parts ?? []).map((part) => part.text ?? "").join("");
    const step = this.steps.findLast((each) => each.type === "INFERENCE");
    return step && step.state === "running" ? step.answer.text : "";
  }

  /** Takes the next event. */
  take(event) {
    this.sequence = Math.max(this.sequence, Number(event.sequence ?? 0));
    this.note = "";
    const step = this.#byId.get(event.stepId);
    if (event.turnStarted) {
      this.input = event.turnStarted.input ?? [];
      this.startTime = event.eventTime;
    } else if (event.stepStarted) this.#started(event);
    else if (event.stepDelta) this.#delta(step, event.stepDelta);
    else if (event.stepProgress && step) step.progress = event.stepProgress;
    else if (event.toolCallStarted) {
      const call = this.call(event.toolCallStarted.callId);
      call.start = event.eventTime;
      call.byCaller = event.toolCallStarted.byCaller ?? false;
    } else if (event.toolCallCompleted) {
      const { result } = event.toolCallCompleted;
      const call = this.call(result.callId);
      call.result = result;
      call.name ||= result.name ?? "";
      call.end = event.eventTime;
      this.#answered(result.callId);
    } else if (event.stepCompleted) this.#completed(step, event);
    else if (event.stepFailed && step) {
      Object.assign(step, { state: "failed", failure: event.stepFailed.failure, end: event.eventTime });
    } else if (event.stepRestarted && step) {
      step.restarts.push(event.stepRestarted);
      step.attempt = event.stepRestarted.attempt;
      step.answer = new Text();
      step.reasoning = new Text();
    } else if (event.turnAwaitingInput) {
      this.status = "waiting";
      this.requests = event.turnAwaitingInput.awaitedInput?.requests ?? [];
      this.expires = event.turnAwaitingInput.awaitedInput?.expireTime ?? "";
    } else if (event.turnInputReceived) {
      for (const input of event.turnInputReceived.inputs ?? []) {
        const answer = input.toolResult ?? input.approval ?? input.outcomeDecision ?? input.credential;
        if (answer) this.#answered(answer.callId);
      }
    } else if (event.turnQueued) this.note = `waits for ${event.turnQueued.position ?? 1} earlier turns`;
    else if (event.turnRecovered) {
      this.note = "went on in another process";
      // The last owner had it in memory only; the next one has it from its beginning, or the result alone.
      for (const call of this.#calls.values()) if (!call.result) call.output = new Text();
    } else if (event.heartbeat) this.note = `silent for ${seconds(event.heartbeat.elapsed)}`;
    else this.#ended(event);
  }

  #started(event) {
    const { type, iteration = 0 } = event.stepStarted;
    const kind = (type ?? "").replace("STEP_TYPE_", "");
    const plan = event.stepStarted[PLANS[kind]] ?? {};
    const step = {
      id: event.stepId, type: kind, iteration, plan, state: "running", start: event.eventTime, attempt: 1,
      answer: new Text(), reasoning: new Text(), calls: [], restarts: [], result: {},
    };
    if (kind === "TOOL_EXECUTION") step.calls = (plan.callIds ?? []).map((callId) => this.call(callId));
    this.#byId.set(event.stepId, step);
    this.steps.push(step);
    if (this.status === "waiting") this.status = "running";
  }

  #delta(step, delta) {
    if (!step || (delta.attempt ?? 1) < step.attempt) return;
    const offset = Number(delta.offset ?? 0);
    const piece = delta.text ?? "";
    if (delta.part === "DELTA_PART_ANSWER") step.answer.put(offset, piece);
    else if (delta.part === "DELTA_PART_REASONING") step.reasoning.put(offset, piece);
    else if (delta.callId) {
      const call = this.call(delta.callId);
      if (delta.toolName) call.name = delta.toolName;
      (delta.part === "DELTA_PART_ARGUMENTS" ? call.args : call.output).put(offset, piece);
      if (delta.part === "DELTA_PART_ARGUMENTS" && !step.calls.includes(call)) step.calls.push(call);
    }
  }

  #completed(step, event) {
    if (!step) return;
    const result = event.stepCompleted[PLANS[step.type]] ?? {};
    for (const told of result.toolCalls ?? []) this.call(told.callId).name = told.name;
    Object.assign(step, { state: "done", result, end: event.eventTime });
    if (result.released?.length && result.verdicts && !this.input.length) this.input = result.released;
    const worst = (result.verdicts ?? []).map((verdict) => verdict.level);
    if (worst.includes("VIOLATION_LEVEL_ERROR")) step.state = "stopped";
    else if (worst.some((level) => level)) step.state = "warned";
  }

  #answered(callId) {
    this.requests = this.requests.filter((request) => request.call?.callId !== callId);
    if (this.status === "waiting" && !this.requests.length) this.status = "running";
  }

  #ended(event) {
    const ended = event.turnCompleted ?? event.turnFailed ?? event.turnCancelled;
    if (!ended) return;
    this.status = event.turnCompleted ? "completed" : event.turnFailed ? "failed" : "cancelled";
    this.output = ended.output ?? null;
    this.outputStep = ended.outputStepId ?? "";
    this.failure = ended.failure ?? null;
    this.reason = ended.reason ?? "";
    this.usage = ended.usage ?? null;
    this.endTime = event.eventTime;
    this.requests = [];
    for (const step of this.steps) if (step.state === "running") Object.assign(step, { state: "left", end: event.eventTime });
  }
}

const PLANS = {
  INFERENCE: "inference",
  TOOL_EXECUTION: "toolExecution",
  SHIELD_CALL: "shieldCall",
  MEMORY_RETRIEVAL: "memoryRetrieval",
  COMPACTION: "compaction",
  SUB_AGENT: "subAgent",
};

/** A duration of ProtoJSON ("3.5s"), or the time between two moments, for people. */
export function seconds(from, to) {
  const value = to === undefined ? parseFloat(from) : (Date.parse(to) - Date.parse(from)) / 1000;
  if (!Number.isFinite(value)) return "";
  return value < 0.995 ? `${Math.max(0, Math.round(value * 1000))} ms` : `${value.toFixed(value < 9.95 ? 1 : 0)} s`;
}
