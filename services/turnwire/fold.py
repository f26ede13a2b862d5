"""The one fold: the state of a turn out of its events.

The agent service, recovery, replay and every client use this module, so a turn looks the same to all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import generation_pb2, message_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

TERMINAL_PAYLOADS = frozenset({"turn_completed", "turn_failed", "turn_cancelled"})
TERMINAL_STATUSES = frozenset(
    {turn_pb2.TURN_STATUS_COMPLETED, turn_pb2.TURN_STATUS_FAILED, turn_pb2.TURN_STATUS_CANCELLED}
)

_TextKey = tuple[str, int, str]  # step id, part, call id


class SequenceGapError(ValueError):
    """The event does not join the ones before it: some were lost on the way. Resume after `expected - 1`."""

    def __init__(self, expected: int, first_sequence: int) -> None:
        """Names the number that was expected and the one that came."""
        super().__init__(f"expected an event from sequence {expected}, got one from {first_sequence}")
        self.expected = expected
        self.first_sequence = first_sequence


class _Text:
    """A text that grows: pieces, joined when somebody looks."""

    __slots__ = ("dirty", "length", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0
        self.dirty = False

    def put(self, offset: int, text: str) -> None:
        if offset != self.length:
            kept = "".join(self.pieces).encode()[:offset].decode()
            self.pieces = [kept]
            self.length = len(kept.encode())
        if text:
            self.pieces.append(text)
            self.length += len(text) if text.isascii() else len(text.encode())
        self.dirty = True

    def joined(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        self.dirty = False
        return self.pieces[0] if self.pieces else ""


class TurnFold:
    """Folds the events of one turn into a `turnwire.agent.v1.Turn`."""

    def __init__(self, turn_id: str = "") -> None:
        """Starts before the first event."""
        self._turn = turn_pb2.Turn(turn_id=turn_id)
        self._steps: dict[str, step_pb2.Step] = {}
        self._texts: dict[_TextKey, _Text] = {}

    def copy(self) -> TurnFold:
        """Returns a fold in the same state that goes its own way."""
        other = TurnFold()
        other._turn.CopyFrom(self.turn)
        other._steps = {step.step_id: step for step in other._turn.steps}
        for key, text in self._texts.items():
            kept = other._texts[key] = _Text()
            kept.put(0, text.joined())
            kept.dirty = False
        return other

    @property
    def last_sequence(self) -> int:
        """The number of the last event seen; 0 before the first."""
        return self._turn.last_sequence

    @property
    def turn(self) -> turn_pb2.Turn:
        """The state so far. The message goes on changing with further events: copy it to keep it."""
        for key, text in self._texts.items():
            if text.dirty:
                self._store_text(key, text.joined())
        return self._turn

    @property
    def finished(self) -> bool:
        """True once a terminal event was seen."""
        return self._turn.status in TERMINAL_STATUSES

    @property
    def awaits_input(self) -> bool:
        """True while the turn is paused."""
        return self._turn.status == turn_pb2.TURN_STATUS_AWAITING_INPUT

    def step(self, step_id: str) -> step_pb2.Step | None:
        """The state of a step, or None when there is none of that id."""
        return self._steps.get(step_id)

    def text_length(self, step_id: str, part: int, call_id: str = "") -> int:
        """The length of a text in UTF-8 bytes: the offset of its next delta."""
        text = self._texts.get((step_id, part, call_id))
        return text.length if text else 0

    def apply(self, event: event_pb2.StepEvent) -> bool:
        """Takes an event in; False when it was seen before or is a heartbeat.

        Raises:
            SequenceGapError: events before this one are missing; the state is unchanged.
        """
        kind = event.WhichOneof("payload")
        turn = self._turn
        if kind == "heartbeat" or event.sequence <= turn.last_sequence:
            return False
        if event.first_sequence > turn.last_sequence + 1:
            raise SequenceGapError(turn.last_sequence + 1, event.first_sequence)
        if not turn.turn_id:
            turn.turn_id = event.turn_id
        turn.last_sequence = event.sequence
        if kind is not None:
            getattr(self, f"_on_{kind}", self._skip)(event, getattr(event, kind))
        return True

    def _skip(self, event: event_pb2.StepEvent, payload: object) -> None:
        """Payloads of later versions change nothing that this version knows."""

    # Turn

    def _on_turn_queued(self, event: event_pb2.StepEvent, payload: event_pb2.TurnQueued) -> None:
        turn = self._turn
        turn.status = turn_pb2.TURN_STATUS_QUEUED
        turn.session_id = payload.session_id
        turn.agent_id = payload.agent_id
        turn.agent_version = payload.agent_version
        turn.ordinal = payload.ordinal
        turn.create_time.CopyFrom(event.event_time)

    def _on_turn_started(self, event: event_pb2.StepEvent, payload: event_pb2.TurnStarted) -> None:
        turn = self._turn
        turn.status = turn_pb2.TURN_STATUS_RUNNING
        turn.session_id = payload.session_id
        turn.agent_id = payload.agent_id
        turn.agent_version = payload.agent_version
        turn.ordinal = payload.ordinal
        turn.input.extend(payload.input)
        if payload.HasField("overrides"):
            turn.overrides.CopyFrom(payload.overrides)
        turn.config_digest = payload.config_digest
        turn.metadata.update(payload.metadata)
        turn.trace_id = payload.trace_id
        turn.session_bank_id = payload.session_bank_id
        if not turn.HasField("create_time"):
            turn.create_time.CopyFrom(event.event_time)

    def _on_turn_awaiting_input(self, event: event_pb2.StepEvent, payload: event_pb2.TurnAwaitingInput) -> None:
        self._turn.status = turn_pb2.TURN_STATUS_AWAITING_INPUT
        self._turn.awaited_input.CopyFrom(payload.awaited_input)

    def _on_turn_input_received(self, event: event_pb2.StepEvent, payload: event_pb2.TurnInputReceived) -> None:
        turn = self._turn
        answered: set[str] = set()
        held = set(payload.held_call_ids)
        for given in payload.inputs:
            kind = given.WhichOneof("input")
            if kind is None:
                continue
            call_id = getattr(given, kind).call_id
            answered.add(call_id)
            if kind == "outcome_decision":
                self._record_decision(given.outcome_decision, event.event_time, held=call_id in held)
            elif kind == "tool_result" and call_id in held:
                self._record_held(call_id)
            elif kind == "tool_result":
                self._record_result(given.tool_result, event.event_time)
        remaining = [request for request in turn.awaited_input.requests if request.call.call_id not in answered]
        if remaining:
            del turn.awaited_input.requests[:]
            turn.awaited_input.requests.extend(remaining)
        else:
            turn.ClearField("awaited_input")
            turn.status = turn_pb2.TURN_STATUS_RUNNING

    def _on_turn_steered(self, event: event_pb2.StepEvent, payload: event_pb2.TurnSteered) -> None:
        self._turn.steering.append(payload.message)

    def _on_turn_recovered(self, event: event_pb2.StepEvent, payload: event_pb2.TurnRecovered) -> None:
        self._turn.recoveries += 1
        # The last owner had it in memory only; the next one has it from its beginning, or the result alone.
        for step in self._steps.values():
            for execution in step.tool_execution.executions:
                if not execution.HasField("result"):
                    self._texts.pop((step.step_id, event_pb2.DELTA_PART_TOOL_OUTPUT, execution.call.call_id), None)
                    execution.ClearField("output")

    def _on_turn_completed(self, event: event_pb2.StepEvent, payload: event_pb2.TurnCompleted) -> None:
        turn = self.turn
        turn.output.CopyFrom(payload.output)
        source = self._steps.get(payload.output_step_id)
        if source is not None and not turn.output.parts:
            fill_output(turn.output, source)
        self._end(event, turn_pb2.TURN_STATUS_COMPLETED, payload.usage)

    def _on_turn_failed(self, event: event_pb2.StepEvent, payload: event_pb2.TurnFailed) -> None:
        self._turn.failure.CopyFrom(payload.failure)
        self._end(event, turn_pb2.TURN_STATUS_FAILED, payload.usage)

    def _on_turn_cancelled(self, event: event_pb2.StepEvent, payload: event_pb2.TurnCancelled) -> None:
        self._turn.cancel_reason = payload.reason
        self._turn.cancelled_calls.extend(payload.calls)
        self._end(event, turn_pb2.TURN_STATUS_CANCELLED, payload.usage)

    def _end(
        self, event: event_pb2.StepEvent, status: turn_pb2.TurnStatus.ValueType, usage: generation_pb2.Usage
    ) -> None:
        turn = self._turn
        turn.status = status
        turn.end_time.CopyFrom(event.event_time)
        turn.usage.CopyFrom(usage)
        turn.ClearField("awaited_input")
        for step in turn.steps:
            if step.status == step_pb2.STEP_STATUS_IN_PROGRESS:
                step.status = step_pb2.STEP_STATUS_CANCELLED
                step.end_time.CopyFrom(event.event_time)

    # Steps

    def _on_step_started(self, event: event_pb2.StepEvent, payload: event_pb2.StepStarted) -> None:
        step = self._turn.steps.add(
            step_id=event.step_id,
            type=payload.type,
            status=step_pb2.STEP_STATUS_IN_PROGRESS,
            attempt=1,
            iteration=payload.iteration,
            trace_id=payload.trace_id,
        )
        step.start_time.CopyFrom(event.event_time)
        self._steps[event.step_id] = step
        match payload.WhichOneof("plan"):
            case "inference":
                step.inference.model_id = payload.inference.model_id
                step.inference.provider_id = payload.inference.provider_id
                self._turn.usage.model_calls += 1
            case "tool_execution":
                self._plan_executions(step, payload.tool_execution)
            case "shield_call":
                step.shield_call.point = payload.shield_call.point
                step.shield_call.shield_ids.extend(payload.shield_call.shield_ids)
                step.shield_call.call_id = payload.shield_call.call_id
            case "memory_retrieval":
                step.memory_retrieval.bank_ids.extend(payload.memory_retrieval.bank_ids)
                step.memory_retrieval.query = payload.memory_retrieval.query
            case "compaction":
                step.compaction.up_to_ordinal = payload.compaction.up_to_ordinal
                step.compaction.model_id = payload.compaction.model_id
            case "sub_agent":
                step.sub_agent.agent_id = payload.sub_agent.agent_id
                step.sub_agent.turn_id = payload.sub_agent.turn_id
                step.sub_agent.call_id = payload.sub_agent.call_id
            case None:
                pass  # a plan of a later version

    def _plan_executions(self, step: step_pb2.Step, plan: event_pb2.ToolExecutionPlan) -> None:
        step.tool_execution.SetInParent()
        source = self._steps.get(plan.inference_step_id)
        calls: dict[str, message_pb2.ToolCall] = {}
        if source is not None:
            self._flush(plan.inference_step_id)
            calls = {call.call_id: call for call in source.inference.tool_calls}
        for call_id in plan.call_ids:
            call = calls.get(call_id, message_pb2.ToolCall(call_id=call_id))
            step.tool_execution.executions.add(call=call)

    def _on_step_delta(self, event: event_pb2.StepEvent, payload: event_pb2.StepDelta) -> None:
        step = self._steps.get(event.step_id)
        if step is None or payload.attempt < step.attempt:
            return
        key = (event.step_id, payload.part, payload.call_id)
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = _Text()
        text.put(payload.offset, payload.text)
        if payload.part == event_pb2.DELTA_PART_ARGUMENTS:
            call = _call_of(step, payload.call_id)
            call.name = payload.tool_name
            call.parse_status = payload.parse_status

    def _on_step_progress(self, event: event_pb2.StepEvent, payload: event_pb2.StepProgress) -> None:
        """Progress is for the watchers; it is no state of the turn."""

    def _on_tool_call_started(self, event: event_pb2.StepEvent, payload: event_pb2.ToolCallStarted) -> None:
        step = self._steps.get(event.step_id)
        execution = _execution_of(step, payload.call_id) if step is not None else None
        if execution is not None:
            execution.start_time.CopyFrom(event.event_time)
            execution.by_caller = payload.by_caller

    def _on_tool_call_completed(self, event: event_pb2.StepEvent, payload: event_pb2.ToolCallCompleted) -> None:
        self._record_result(payload.result, event.event_time)

    def _record_result(self, result: message_pb2.ToolResult, when: Timestamp) -> None:
        for step in self._turn.steps:
            execution = _execution_of(step, result.call_id)
            if execution is not None:
                execution.result.CopyFrom(result)
                execution.end_time.CopyFrom(when)
                execution.held = False

    def _record_held(self, call_id: str) -> None:
        for step in self._turn.steps:
            execution = _execution_of(step, call_id)
            if execution is not None:
                execution.held = True

    def _record_decision(self, decision: turn_pb2.OutcomeDecision, when: Timestamp, *, held: bool) -> None:
        for step in self._turn.steps:
            execution = _execution_of(step, decision.call_id)
            if execution is None:
                continue
            execution.decided = True
            if decision.choice == turn_pb2.OutcomeDecision.CHOICE_RETRY:
                again = message_pb2.ToolCall()
                again.CopyFrom(execution.call)
                again.call_id, again.retry_of = decision.retry_call_id, decision.call_id
                step.tool_execution.executions.add(call=again)
            elif held:
                execution.held = True
            elif decision.choice == turn_pb2.OutcomeDecision.CHOICE_PROVIDE:
                execution.result.CopyFrom(decision.result)
                execution.end_time.CopyFrom(when)

    def _on_step_completed(self, event: event_pb2.StepEvent, payload: event_pb2.StepCompleted) -> None:
        step = self._steps.get(event.step_id)
        if step is None:
            return
        step.status = step_pb2.STEP_STATUS_COMPLETED
        step.end_time.CopyFrom(event.event_time)
        match payload.WhichOneof("result"):
            case "inference":
                self._complete_inference(step, payload.inference)
            case "shield_call":
                step.shield_call.verdicts.extend(payload.shield_call.verdicts)
                if payload.shield_call.released:
                    del self._turn.input[:]
                    self._turn.input.extend(payload.shield_call.released)
            case "memory_retrieval":
                self._complete_retrieval(step.memory_retrieval, payload.memory_retrieval)
            case "compaction":
                step.compaction.summary = payload.compaction.summary
                step.compaction.usage.CopyFrom(payload.compaction.usage)
                add_usage(self._turn.usage, payload.compaction.usage)
            case "tool_execution" | "sub_agent" | None:
                pass

    def _complete_retrieval(
        self, retrieval: step_pb2.MemoryRetrievalStep, result: event_pb2.MemoryRetrievalResult
    ) -> None:
        retrieval.query = result.query
        retrieval.chunks.extend(result.chunks)
        retrieval.inserted_document_ids.extend(result.inserted_document_ids)
        for document_id, failure in result.refused_documents.items():
            retrieval.refused_documents[document_id].CopyFrom(failure)
        add_usage(self._turn.usage, result.usage)

    def _complete_inference(self, step: step_pb2.Step, result: event_pb2.InferenceResult) -> None:
        inference = step.inference
        inference.stop_reason = result.stop_reason
        inference.usage.CopyFrom(result.usage)
        if result.HasField("time_to_first_token"):
            inference.time_to_first_token.CopyFrom(result.time_to_first_token)
        if result.provider_id:
            inference.provider_id = result.provider_id
        for call in result.tool_calls:
            kept = _call_of(step, call.call_id)
            kept.name = call.name
            kept.model_call_id = call.model_call_id
            kept.parse_status = call.parse_status
        add_usage(self._turn.usage, result.usage)

    def _on_step_failed(self, event: event_pb2.StepEvent, payload: event_pb2.StepFailed) -> None:
        step = self._steps.get(event.step_id)
        if step is None:
            return
        step.status = step_pb2.STEP_STATUS_FAILED
        step.end_time.CopyFrom(event.event_time)
        step.failure.CopyFrom(payload.failure)

    def _on_step_restarted(self, event: event_pb2.StepEvent, payload: event_pb2.StepRestarted) -> None:
        step = self._steps.get(event.step_id)
        if step is None:
            return
        step.attempt = payload.attempt
        for key in [key for key in self._texts if key[0] == event.step_id]:
            del self._texts[key]
        if step.type == step_pb2.STEP_TYPE_INFERENCE:
            self._turn.usage.model_calls += 1
            del step.inference.tool_calls[:]
            step.inference.ClearField("text")
            step.inference.ClearField("reasoning")

    # Texts

    def _flush(self, step_id: str) -> None:
        for key, text in self._texts.items():
            if key[0] == step_id and text.dirty:
                self._store_text(key, text.joined())

    def _store_text(self, key: _TextKey, value: str) -> None:
        step_id, part, call_id = key
        step = self._steps[step_id]
        match part:
            case event_pb2.DELTA_PART_ANSWER:
                step.inference.text = value
            case event_pb2.DELTA_PART_REASONING:
                step.inference.reasoning = value
            case event_pb2.DELTA_PART_ARGUMENTS:
                _call_of(step, call_id).arguments_json = value
            case event_pb2.DELTA_PART_TOOL_OUTPUT:
                execution = _execution_of(step, call_id)
                if execution is not None:
                    execution.output = value
            case _:
                pass  # a part of a later version


def fill_output(output: message_pb2.Message, step: step_pb2.Step) -> None:
    """Puts the text of the step that gave the answer into the final message."""
    output.parts.add(text=step.inference.text, provenance=message_pb2.PROVENANCE_MODEL)
    output.reasoning = step.inference.reasoning


def add_usage(total: generation_pb2.Usage, usage: generation_pb2.Usage) -> None:
    """Adds the tokens of a model call to a total; calls are counted when they start."""
    total.prompt_tokens += usage.prompt_tokens
    total.completion_tokens += usage.completion_tokens
    total.cached_tokens += usage.cached_tokens
    total.estimated |= usage.estimated


def _call_of(step: step_pb2.Step, call_id: str) -> message_pb2.ToolCall:
    for call in step.inference.tool_calls:
        if call.call_id == call_id:
            return call
    return step.inference.tool_calls.add(call_id=call_id)


def _execution_of(step: step_pb2.Step, call_id: str) -> step_pb2.ToolExecution | None:
    for execution in step.tool_execution.executions:
        if execution.call.call_id == call_id:
            return execution
    return None
