"""An INFERENCE step: the model is called, and what it writes goes to the log as it comes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import structlog

from turnwire.agent.log.writer import draft
from turnwire.agent.turn import transcript
from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2
from turnwire.errors import TurnwireError, from_rpc_error
from turnwire.ids import new_id
from turnwire.inference.v1 import inference_service_pb2
from turnwire.runtime.channels import upstream
from turnwire.runtime.identity import traceparent
from turnwire.runtime.telemetry import trace_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.log.writer import TurnWriter
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

_log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 3
"""How often a model is called for one step, while the failures are of the kind that passes."""

_RETRIED = frozenset(
    {
        error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
        error_pb2.ERROR_REASON_DRAINING,
        error_pb2.ERROR_REASON_OVERLOADED,
        error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
        error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED,
    }
)
_LONGEST_DELAY = 30.0


@dataclass(slots=True)
class _Call:
    call_id: str
    name: str
    model_call_id: str
    parse_status: message_pb2.ToolCallParseStatus.ValueType = message_pb2.TOOL_CALL_PARSE_STATUS_STARTED


@dataclass(slots=True)
class _Answer:
    """What has come of an answer so far."""

    calls: dict[int, _Call] = field(default_factory=dict)
    first_delta: float | None = None
    completed: inference_service_pb2.ChatCompletionCompleted | None = None
    provider_id: str = ""


class InferenceStep:
    """Runs inference steps of one turn."""

    def __init__(
        self, stub: InferenceServiceStub, writer: TurnWriter, config: TurnConfig, *, timeout_seconds: float
    ) -> None:
        """Calls models through `stub`; an attempt takes at most `timeout_seconds`."""
        self._stub = stub
        self._writer = writer
        self._config = config
        self._timeout_seconds = timeout_seconds

    async def run(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, history: Sequence[message_pb2.Message]
    ) -> list[event_pb2.StepEvent]:
        """Runs one attempt of a step and returns the events that end it: completed, restarted or failed."""
        request = self.request(turn, step, history)
        try:
            answer = await self._stream(step, request)
        except TurnwireError as error:
            return await self._failed(turn, step, error)
        return [self._completed(turn, step, answer)]

    def request(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, history: Sequence[message_pb2.Message]
    ) -> inference_service_pb2.ChatCompletionRequest:
        """Returns what the model is asked: instructions, history, the turn so far, and how to answer."""
        config = self._config.config
        messages = [
            *transcript.instructions(config.instructions),
            *history,
            *transcript.present_messages(turn),
        ]
        transcript.check(messages)
        request = inference_service_pb2.ChatCompletionRequest(
            model=config.model, messages=messages, tool_prompt_format=config.tool_prompt_format
        )
        if config.HasField("sampling_parameters"):
            request.sampling_parameters.CopyFrom(config.sampling_parameters)
        request.tools.extend(self._config.functions.values())
        if config.HasField("tool_choice") and request.tools:
            request.tool_choice.CopyFrom(self._tool_choice(step))
        forced = request.tool_choice.mode in {
            generation_pb2.ToolChoice.MODE_REQUIRED,
            generation_pb2.ToolChoice.MODE_NAMED,
        }
        if config.HasField("response_format") and not forced:
            request.response_format.CopyFrom(config.response_format)
        return request

    def _tool_choice(self, step: step_pb2.Step) -> generation_pb2.ToolChoice:
        choice = self._config.config.tool_choice
        forced = choice.mode in {generation_pb2.ToolChoice.MODE_REQUIRED, generation_pb2.ToolChoice.MODE_NAMED}
        # A choice that forced every iteration would never let the model answer.
        if forced and step.iteration > 1:
            return generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_AUTO)
        return choice

    async def _stream(self, step: step_pb2.Step, request: inference_service_pb2.ChatCompletionRequest) -> _Answer:
        answer = _Answer()
        try:
            call = self._stub.ChatCompletion(request, timeout=self._timeout_seconds, metadata=_trace(step))
            async with upstream(call):
                async for chunk in call:
                    self._take(step, chunk, answer)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        if answer.completed is None:
            raise TurnwireError.cut("inference")
        return answer

    def _take(self, step: step_pb2.Step, chunk: inference_service_pb2.ChatCompletionResponse, answer: _Answer) -> None:
        kind = chunk.WhichOneof("payload")
        if answer.first_delta is None and kind not in {None, "started", "completed"}:
            answer.first_delta = asyncio.get_running_loop().time()
        match kind:
            case "started":
                answer.provider_id = chunk.started.provider_id
            case "text":
                self._writer.delta(step.step_id, step.attempt, event_pb2.DELTA_PART_ANSWER, chunk.text.text)
            case "reasoning":
                self._writer.delta(step.step_id, step.attempt, event_pb2.DELTA_PART_REASONING, chunk.reasoning.text)
            case "tool_call_started":
                started = chunk.tool_call_started
                answer.calls[started.index] = _Call(new_id("call"), started.name, started.model_call_id)
                self._arguments(step, answer.calls[started.index], "")
            case "tool_call_delta":
                call = answer.calls[chunk.tool_call_delta.index]
                call.parse_status = message_pb2.TOOL_CALL_PARSE_STATUS_IN_PROGRESS
                self._arguments(step, call, chunk.tool_call_delta.arguments_json)
            case "tool_call_finished":
                call = answer.calls[chunk.tool_call_finished.index]
                call.parse_status = chunk.tool_call_finished.parse_status
                self._arguments(step, call, "")
            case "completed":
                answer.completed = chunk.completed
            case None:
                pass  # a piece of a later version

    def _arguments(self, step: step_pb2.Step, call: _Call, text: str) -> None:
        self._writer.delta(
            step.step_id,
            step.attempt,
            event_pb2.DELTA_PART_ARGUMENTS,
            text,
            call_id=call.call_id,
            tool_name=call.name,
            parse_status=call.parse_status,
        )

    def _completed(self, turn: turn_pb2.Turn, step: step_pb2.Step, answer: _Answer) -> event_pb2.StepEvent:
        assert answer.completed is not None
        result = event_pb2.InferenceResult(
            stop_reason=answer.completed.stop_reason, usage=answer.completed.usage, provider_id=answer.provider_id
        )
        if answer.completed.timings.HasField("time_to_first_token"):
            result.time_to_first_token.CopyFrom(answer.completed.timings.time_to_first_token)
        for index in sorted(answer.calls):
            call = answer.calls[index]
            result.tool_calls.add(
                call_id=call.call_id,
                name=call.name,
                model_call_id=call.model_call_id,
                parse_status=call.parse_status,
            )
        return draft(turn.turn_id, "step_completed", event_pb2.StepCompleted(inference=result), step.step_id)

    async def _failed(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, error: TurnwireError
    ) -> list[event_pb2.StepEvent]:
        failure = error.to_failure()
        _log.warning(
            "inference_failed", turn_id=turn.turn_id, step_id=step.step_id, attempt=step.attempt, error=error.message
        )
        if error.reason not in _RETRIED or step.attempt >= MAX_ATTEMPTS:
            failed = event_pb2.StepFailed(failure=failure)
            return [draft(turn.turn_id, "step_failed", failed, step.step_id)]
        delay = error.retry_after if error.retry_after is not None else 0.5 * 4 ** (step.attempt - 1)
        delay = min(delay, _LONGEST_DELAY) * random.uniform(1.0, 1.3)  # noqa: S311 - jitter, no secret
        restarted = event_pb2.StepRestarted(attempt=step.attempt + 1, cause=failure)
        restarted.delay.FromMilliseconds(int(delay * 1000))
        return [draft(turn.turn_id, "step_restarted", restarted, step.step_id)]


def _trace(step: step_pb2.Step) -> tuple[tuple[str, str], ...]:
    """Keeps the model's call in the trace of its step, whoever goes on with the turn and in whichever process."""
    if trace_id(traceparent()) == step.trace_id:
        return ()  # the channel sends it below the span of the call that began the turn
    return (("traceparent", f"00-{step.trace_id}-{step.step_id[-16:]}-01"),)
