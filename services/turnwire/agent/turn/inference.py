"""An INFERENCE step: the model is called, and what it writes goes to the log as it comes, or once shields pass it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from turnwire.agent.log.writer import draft
from turnwire.agent.turn import transcript
from turnwire.agent.turn.retrying import failed_or_restarted
from turnwire.agent.turn.together import together
from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.errors import TurnwireError, from_rpc_error
from turnwire.ids import new_id
from turnwire.inference.v1 import inference_service_pb2
from turnwire.runtime.channels import upstream
from turnwire.runtime.failpoints import Failpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.log.writer import TurnWriter
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.agent.turn.screening import Screening
    from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

_ASKED = Failpoint("agent.model_asked")
_FIRST = Failpoint("agent.first_token")
_BETWEEN = Failpoint("agent.between_deltas")
_ENDED = Failpoint("agent.model_ended")
_FORCED = frozenset({generation_pb2.ToolChoice.MODE_REQUIRED, generation_pb2.ToolChoice.MODE_NAMED})
_AROUND = frozenset({"started", "completed", None})
"""What of an answer is nothing that the model has written."""


@dataclass(slots=True)
class _Call:
    call_id: str
    name: str
    model_call_id: str
    held: bool
    arguments: str = ""
    """What is held."""
    parse_status: message_pb2.ToolCallParseStatus.ValueType = message_pb2.TOOL_CALL_PARSE_STATUS_STARTED


@dataclass(slots=True)
class _Answer:
    """What has come of an answer so far."""

    calls: dict[int, _Call] = field(default_factory=dict)
    text: str = ""
    """What is held of the answer."""
    reasoning: str = ""
    completed: inference_service_pb2.ChatCompletionCompleted | None = None
    provider_id: str = ""
    begun: bool = False
    """The model has written something."""
    blocked: bool = False


class InferenceStep:
    """Runs inference steps of one turn."""

    def __init__(
        self,
        stub: InferenceServiceStub,
        writer: TurnWriter,
        config: TurnConfig,
        screening: Screening,
        *,
        timeout_seconds: float,
    ) -> None:
        """Calls models through `stub`; an attempt takes at most `timeout_seconds`."""
        self._stub = stub
        self._writer = writer
        self._config = config
        self._screening = screening
        self._timeout_seconds = timeout_seconds

    async def run(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, history: Sequence[message_pb2.Message]
    ) -> list[event_pb2.StepEvent]:
        """Runs one attempt of a step and returns the events that end it: completed, restarted or failed."""
        request = self.request(turn, step, history)
        try:
            answer = await self._stream(step, request)
        except TurnwireError as error:
            return [failed_or_restarted(turn, step, error)]
        await self._release(turn, step, answer)
        return [self._completed(turn, step, answer)]

    def request(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, history: Sequence[message_pb2.Message]
    ) -> inference_service_pb2.ChatCompletionRequest:
        """Returns what the model is asked: instructions, history, the turn so far, and how to answer."""
        config = self._config.config
        messages = [
            *transcript.instructions(config.instructions),
            *history,
            *transcript.present_messages(turn, files_go_to_interpreter=self._config.files_go_to_interpreter),
        ]
        transcript.check(messages)
        request = inference_service_pb2.ChatCompletionRequest(
            model=config.model, messages=messages, tool_prompt_format=config.tool_prompt_format
        )
        if config.HasField("sampling_parameters"):
            request.sampling_parameters.CopyFrom(config.sampling_parameters)
        request.tools.extend(self._config.definitions)
        if request.tools and 1 < step.iteration == self._config.max_iterations:
            # Nobody would read what a call of the last iteration gives: it is for the answer.
            request.tool_choice.mode = generation_pb2.ToolChoice.MODE_NONE
        elif config.HasField("tool_choice") and request.tools:
            request.tool_choice.CopyFrom(self._tool_choice(step))
        if config.HasField("response_format") and request.tool_choice.mode not in _FORCED:
            request.response_format.CopyFrom(config.response_format)
        return request

    def _tool_choice(self, step: step_pb2.Step) -> generation_pb2.ToolChoice:
        choice = self._config.config.tool_choice
        # A choice that forced every iteration would never let the model answer.
        if choice.mode in _FORCED and step.iteration > 1:
            return generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_AUTO)
        return choice

    async def _stream(self, step: step_pb2.Step, request: inference_service_pb2.ChatCompletionRequest) -> _Answer:
        answer = _Answer()
        try:
            call = self._stub.ChatCompletion(request, timeout=self._timeout_seconds)
            async with upstream(call):
                await _ASKED.reached()
                async for chunk in call:
                    self._take(step, chunk, answer)
                    if Failpoint.armed and chunk.WhichOneof("payload") not in _AROUND:
                        await (_BETWEEN if answer.begun else _FIRST).reached()
                        answer.begun = True
                    await self._writer.room()
            await _ENDED.reached()
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        if answer.completed is None:
            raise TurnwireError.cut("inference")
        return answer

    def _take(self, step: step_pb2.Step, chunk: inference_service_pb2.ChatCompletionResponse, answer: _Answer) -> None:
        match chunk.WhichOneof("payload"):
            case "started":
                answer.provider_id = chunk.started.provider_id
            case "text":
                if self._screening.holds_answer:
                    answer.text += chunk.text.text
                else:
                    self._write(step, event_pb2.DELTA_PART_ANSWER, chunk.text.text)
            case "reasoning":
                if self._screening.holds_answer:
                    answer.reasoning += chunk.reasoning.text
                else:
                    self._write(step, event_pb2.DELTA_PART_REASONING, chunk.reasoning.text)
            case "tool_call_started":
                started = chunk.tool_call_started
                held = self._screening.holds_arguments(started.name)
                call = answer.calls[started.index] = _Call(new_id("call"), started.name, started.model_call_id, held)
                self._arguments(step, call, "")
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

    async def _release(self, turn: turn_pb2.Turn, step: step_pb2.Step, answer: _Answer) -> None:
        """Lets go of what was held, as far as the shields pass it; all of them run at once."""
        held = [call for call in answer.calls.values() if call.held]
        runs = [self._release_arguments(turn, step, call) for call in held]
        if answer.text or answer.reasoning:
            runs.append(self._release_answer(turn, step, answer))
        answer.blocked = not all(await together(*runs))

    async def _release_answer(self, turn: turn_pb2.Turn, step: step_pb2.Step, answer: _Answer) -> bool:
        passed = await self._screening.answer(turn, step.iteration, answer.text, answer.reasoning)
        if passed is None:
            return False
        text, reasoning = passed
        if reasoning:
            self._write(step, event_pb2.DELTA_PART_REASONING, reasoning)
        if text:
            self._write(step, event_pb2.DELTA_PART_ANSWER, text)
        return True

    async def _release_arguments(self, turn: turn_pb2.Turn, step: step_pb2.Step, call: _Call) -> bool:
        passed = await self._screening.arguments(turn, step.iteration, call.call_id, call.name, call.arguments)
        if passed is None:
            return False
        call.held = False
        self._arguments(step, call, passed)
        return True

    def _write(self, step: step_pb2.Step, part: event_pb2.DeltaPart.ValueType, text: str) -> None:
        self._writer.delta(step.step_id, step.attempt, part, text)

    def _arguments(self, step: step_pb2.Step, call: _Call, text: str) -> None:
        if call.held:
            call.arguments += text
            return
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
            stop_reason=message_pb2.STOP_REASON_SHIELD if answer.blocked else answer.completed.stop_reason,
            usage=answer.completed.usage,
            provider_id=answer.provider_id,
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
