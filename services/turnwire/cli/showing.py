"""A turn as it happens, in a terminal: the answer on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2, shield_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_LONGEST_NOTE = 500
_LEAST_WRITING_SECONDS = 0.05
"""A text that came within less says nothing about the pace of its model."""


class TurnPrinter:
    """Prints the events of a turn.

    In a terminal the answer is printed while it is written. What is piped gets it when it is final: text that was only
    on the way to a tool call, or that a restart took back, is no part of it.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet` prints the answer and errors only."""
        self._quiet = quiet
        self._live = sys.stdout.isatty()
        self._step_begun: float | None = None
        self._turn_begun = 0.0
        self._steps = 0
        self._written: dict[int, int] = {}
        self._part = event_pb2.DELTA_PART_UNSPECIFIED
        self._midline = False
        self._calls: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def show(self, event: event_pb2.StepEvent) -> None:
        """Prints one event."""
        match event.WhichOneof("payload"):
            case "turn_started":
                self._turn_begun = _seconds(event.event_time)
                self._note(f"{event.turn_id} in {event.turn_started.session_id}")
            case "step_started":
                self._step_started(event)
            case "step_delta":
                self._delta(event)
            case "step_completed":
                self._step_completed(event)
            case "step_restarted":
                self._note(f"starting the step again: {event.step_restarted.cause.message}")
                self._written.clear()
                self._calls.clear()
            case "step_failed":
                self._note(f"the step failed: {event.step_failed.failure.message}")
            case "step_progress":
                self._progressed(event.step_progress)
            case "tool_call_completed":
                self._result(event.tool_call_completed.result)
            case "turn_awaiting_input":
                for request in event.turn_awaiting_input.awaited_input.requests:
                    self._asked(event.turn_id, request)
            case "turn_input_received":
                for entry in event.turn_input_received.inputs:
                    if entry.HasField("tool_result"):
                        self._result(entry.tool_result)
                    elif entry.HasField("outcome_decision"):
                        self._decided(entry.outcome_decision)
            case "turn_recovered":
                self._note("another process of the agent service goes on with the turn")
            case "turn_completed":
                self._completed(event)
            case "turn_failed":
                self._failed(event.turn_failed.failure)
            case "turn_cancelled":
                self._note("cancelled")
                self._left_open(event.turn_cancelled)
            case _:
                pass

    def end(self, turn: turn_pb2.Turn) -> None:
        """Ends the last line; says so when the events ended before the turn did."""
        self._line()
        if turn.status == turn_pb2.TURN_STATUS_RUNNING:
            self._note("the turn goes on; `turnwire turns watch` shows it")

    def _left_open(self, cancelled: event_pb2.TurnCancelled) -> None:
        """Tells which tools may have had effects, and which go on. What was stopped needs no word."""
        for call in cancelled.calls:
            name = self._names.get(call.call_id, call.call_id)
            match call.outcome:
                case turn_pb2.CancelledCall.OUTCOME_UNKNOWN:
                    self._note(f"what {name} did is not known: look at what it may have done")
                case turn_pb2.CancelledCall.OUTCOME_FENCED:
                    self._note(f"{name} may run on; its result is no longer taken")
                case _:
                    pass

    def _step_started(self, event: event_pb2.StepEvent) -> None:
        self._steps += 1
        started = event.step_started
        # Shields run within the step of a model: its figures go on.
        if started.type == step_pb2.STEP_TYPE_INFERENCE:
            self._step_begun = _seconds(event.event_time)
            self._written.clear()
            self._calls.clear()
            self._note(f"{started.inference.provider_id}/{started.inference.model_id}")

    def _delta(self, event: event_pb2.StepEvent) -> None:
        delta = event.step_delta
        match delta.part:
            case event_pb2.DELTA_PART_ARGUMENTS:
                self._calls[delta.call_id] = self._calls.get(delta.call_id, "") + delta.text
            case event_pb2.DELTA_PART_ANSWER if self._live:
                self._text(delta, err=False)
            case event_pb2.DELTA_PART_REASONING if not self._quiet:
                self._text(delta, err=True)
            case _:
                pass

    def _text(self, delta: event_pb2.StepDelta, *, err: bool) -> None:
        if delta.part != self._part:
            self._line()
            self._part = delta.part
        # A resumed stream may repeat a text from its start: only what is new is printed.
        raw = delta.text.encode()
        written = self._written.get(delta.part, 0)
        fresh = raw[max(0, written - delta.offset) :]
        self._written[delta.part] = max(written, delta.offset + len(raw))
        if fresh:
            text = fresh.decode()
            click.echo(click.style(text, dim=True) if err else text, nl=False, err=err)
            self._midline = not text.endswith("\n")

    def _step_completed(self, event: event_pb2.StepEvent) -> None:
        match event.step_completed.WhichOneof("result"):
            case "inference":
                self._answered(event)
            case "shield_call":
                for verdict in event.step_completed.shield_call.verdicts:
                    self._verdict(verdict)
            case "memory_retrieval":
                places = dict.fromkeys(chunk.title for chunk in event.step_completed.memory_retrieval.chunks)
                self._note(f"looked up: {', '.join(places) or 'nothing that fits'}")
            case _:
                pass

    def _verdict(self, verdict: shield_pb2.ShieldVerdict) -> None:
        if verdict.HasField("failure"):
            self._note(f"the shield {verdict.shield_id} could not judge: {verdict.failure.message}")
        elif verdict.level:
            level = shield_pb2.ViolationLevel.Name(verdict.level).removeprefix("VIOLATION_LEVEL_").lower()
            self._note(f"the shield {verdict.shield_id} found {', '.join(verdict.categories) or 'something'} ({level})")

    def _answered(self, event: event_pb2.StepEvent) -> None:
        result = event.step_completed.inference
        for call in result.tool_calls:
            self._names[call.call_id] = call.name
            status = message_pb2.ToolCallParseStatus.Name(call.parse_status).removeprefix("TOOL_CALL_PARSE_STATUS_")
            told = "" if call.parse_status == message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED else f"  {status.lower()}"
            arguments = call.arguments_json or self._calls.get(call.call_id, "")
            self._note(f"calls {call.name}({arguments}){told}")
        self._note(self._figures(result, _seconds(event.event_time)))

    def _progressed(self, progress: event_pb2.StepProgress) -> None:
        of = f" of {progress.total}" if progress.total else ""
        name = self._names.get(progress.call_id, progress.call_id)
        self._note(f"{name}: {progress.done}{of} {progress.unit}".removeprefix(": "))

    def _asked(self, turn_id: str, request: turn_pb2.InputRequest) -> None:
        call = request.call
        self._names[call.call_id] = call.name
        if request.kind == turn_pb2.INPUT_KIND_OUTCOME_DECISION:
            self._note(f"nobody knows what became of {call.name}({call.arguments_json}); look, then decide")
            self._note(f"  turnwire turns resolve {turn_id} {call.call_id} retry|skip|provide --watch")
        else:
            self._note(f"waits for the result of {call.name}({call.arguments_json})")
            self._note(f"  turnwire turns submit {turn_id} {call.call_id} RESULT --watch")

    def _decided(self, decision: turn_pb2.OutcomeDecision) -> None:
        name = self._names.get(decision.call_id, decision.call_id)
        match decision.choice:
            case turn_pb2.OutcomeDecision.CHOICE_RETRY:
                self._names[decision.retry_call_id] = name
                self._note(f"{name} is called again")
            case turn_pb2.OutcomeDecision.CHOICE_PROVIDE:
                self._result(decision.result)
            case _:
                self._note(f"the model is told that the outcome of {name} is not known")

    def _result(self, result: message_pb2.ToolResult) -> None:
        said = result.failure.message if result.HasField("failure") else result.content
        self._note(f"{result.name or self._names.get(result.call_id, result.call_id)} → {said}")

    def _figures(self, result: event_pb2.InferenceResult, ended: float) -> str:
        usage = result.usage
        estimated = " (estimated)" if usage.estimated else ""
        told = f"{usage.prompt_tokens} tokens read, {usage.completion_tokens} written{estimated}"
        if self._step_begun is None:
            return told  # its start was not seen
        taken = ended - self._step_begun
        told += f" in {taken:.1f} s"
        first = 0.0
        if result.HasField("time_to_first_token"):
            first = result.time_to_first_token.ToMilliseconds() / 1000
            told += f", first token after {first:.2f} s"
        writing = taken - first
        return f"{told}, {usage.completion_tokens / writing:.0f} tokens/s" if writing > _LEAST_WRITING_SECONDS else told

    def _completed(self, event: event_pb2.StepEvent) -> None:
        self._line()
        completed = event.turn_completed
        if not self._live:
            text = "".join(part.text for part in completed.output.parts)
            click.echo(text, nl=not text.endswith("\n"))
        elif not completed.output_step_id:
            click.echo("".join(part.text for part in completed.output.parts))  # a refusal: no step has written it
        cited = dict.fromkeys(citation.title or citation.document_id for citation in completed.output.citations)
        if cited:
            self._note(f"rests on {', '.join(cited)}")
        for attachment in completed.output.attachments:
            self._note(f"made {attachment.name} ({attachment.artifact_id})")
        if self._steps > 1:
            self._note(f"{self._steps} steps, {_seconds(event.event_time) - self._turn_begun:.1f} s in all")
        match completed.output.stop_reason:
            case message_pb2.STOP_REASON_OUT_OF_TOKENS:
                self._note("the answer is cut: the limit of tokens was reached")
            case message_pb2.STOP_REASON_MAX_ITERATIONS:
                self._note("the turn reached its last iteration with calls still open")
            case _:
                pass

    def _failed(self, failure: error_pb2.Failure) -> None:
        self._line()
        click.echo(f"The turn failed: {failure.message} [{error_pb2.ErrorReason.Name(failure.reason)}]", err=True)

    def _note(self, text: str) -> None:
        self._line()
        if not self._quiet:
            line = text if len(text) <= _LONGEST_NOTE else f"{text[: _LONGEST_NOTE - 1]}…"
            click.secho(f"  {line}", err=True, dim=True)

    def _line(self) -> None:
        if self._midline:
            click.echo(err=self._part == event_pb2.DELTA_PART_REASONING)
            self._midline = False
        self._part = event_pb2.DELTA_PART_UNSPECIFIED
        sys.stdout.flush()


def _seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9
