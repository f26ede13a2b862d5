"""A turn as it happens, in a terminal: the answer on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2

if TYPE_CHECKING:
    from turnwire.client import TurnStream


class TurnPrinter:
    """Prints the events of a turn."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet` prints the answer only."""
        self._quiet = quiet
        self._begun = time.monotonic()
        self._step_begun = self._begun
        self._first: float | None = None
        self._pieces = 0
        self._midline = False
        self._shown = 0

    def show(self, event: event_pb2.StepEvent, stream: TurnStream) -> None:
        """Prints one event."""
        match event.WhichOneof("payload"):
            case "step_started":
                self._step_started(event.step_started)
            case "step_delta":
                self._delta(event, stream)
            case "step_completed":
                self._step_completed(event, stream)
            case "step_restarted":
                self._note(f"starting the step again: {event.step_restarted.cause.message}")
                self._shown = 0
            case "tool_call_completed":
                result = event.tool_call_completed.result
                said = result.failure.message if result.HasField("failure") else result.content
                self._note(f"{result.name} → {said}")
            case "turn_awaiting_input":
                for request in event.turn_awaiting_input.awaited_input.requests:
                    self._note(f"waits for the result of {request.call.name} ({request.call.call_id})")
            case "turn_recovered":
                self._note("another process of the agent service goes on with the turn")
            case "turn_completed":
                self._completed(event.turn_completed)
            case "turn_failed":
                self._failed(event.turn_failed.failure)
            case "turn_cancelled":
                self._note("cancelled")
            case _:
                pass

    def _step_started(self, started: event_pb2.StepStarted) -> None:
        self._step_begun = time.monotonic()
        self._first = None
        self._pieces = self._shown = 0
        if started.type == step_pb2.STEP_TYPE_INFERENCE:
            self._note(f"{started.inference.provider_id}/{started.inference.model_id}")

    def _delta(self, event: event_pb2.StepEvent, stream: TurnStream) -> None:
        if self._first is None:
            self._first = time.monotonic() - self._step_begun
        self._pieces += event.sequence - event.first_sequence + 1
        if event.step_delta.part != event_pb2.DELTA_PART_ANSWER:
            return
        # A resumed stream may repeat a text from its start: only what is new is printed.
        text = stream.text
        click.echo(text[self._shown :], nl=False)
        self._midline = not text.endswith("\n")
        self._shown = len(text)

    def _step_completed(self, event: event_pb2.StepEvent, stream: TurnStream) -> None:
        if event.step_completed.WhichOneof("result") != "inference":
            return
        step = stream.fold.step(event.step_id)
        for call in step.inference.tool_calls if step is not None else ():
            status = message_pb2.ToolCallParseStatus.Name(call.parse_status).removeprefix("TOOL_CALL_PARSE_STATUS_")
            self._note(f"calls {call.name}({call.arguments_json})  {status.lower()}")
        usage = event.step_completed.inference.usage
        seconds = time.monotonic() - self._step_begun
        writing = seconds - (self._first or 0.0)
        # A turn that is shown again comes at once: its pace says nothing.
        pace = f", {usage.completion_tokens / writing:.0f} tokens/s" if writing > 0.2 else ""
        first = f", first token after {self._first:.2f} s" if self._first is not None else ""
        self._note(
            f"{usage.prompt_tokens} tokens read, {usage.completion_tokens} written in {seconds:.1f} s"
            f"{first}{pace}{_estimate(usage)}"
        )

    def _completed(self, completed: event_pb2.TurnCompleted) -> None:
        self._line()
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
            click.secho(f"  {text}", err=True, dim=True)

    def _line(self) -> None:
        if self._midline:
            click.echo()
            self._midline = False
        sys.stdout.flush()


def _estimate(usage: generation_pb2.Usage) -> str:
    return " (estimated)" if usage.estimated else ""
