"""What shields hold: the text of a model and the arguments of its calls, until their verdicts are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.turn.steps import start_event
from turnwire.agent.v1 import event_pb2
from turnwire.common.v1 import message_pb2, shield_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from turnwire.agent.turn.config import TurnConfig
    from turnwire.agent.turn.shields import Judgement, Shields
    from turnwire.agent.v1 import turn_pb2

    Commit = Callable[[Sequence[event_pb2.StepEvent]], Awaitable[None]]


class Screening:
    """Runs shields within a step, each run as a step of its own."""

    def __init__(self, shields: Shields, config: TurnConfig, commit: Commit) -> None:
        """Commits the start and the end of each run through `commit`."""
        self._shields = shields
        self._config = config
        self._commit = commit

    @property
    def holds_answer(self) -> bool:
        """True when the text of the model is held."""
        return bool(self._config.config.output_shields)

    def holds_arguments(self, tool_name: str) -> bool:
        """True when the arguments of a tool's calls are held."""
        tool = self._config.tool(tool_name)
        return tool is not None and bool(tool.input_shields)

    def holds_result(self, tool_name: str) -> bool:
        """True when the results of a tool are held."""
        return self._config.holds_results(tool_name)

    async def answer(self, turn: turn_pb2.Turn, iteration: int, text: str, reasoning: str) -> tuple[str, str] | None:
        """Returns what passes of an answer and of the thoughts before it, or None when nothing does."""
        messages = [_said(message_pb2.ROLE_ASSISTANT, each, message_pb2.PROVENANCE_MODEL) for each in (text, reasoning)]
        shields = self._config.config.output_shields
        judgement = await self._run(turn, iteration, shield_pb2.SHIELD_POINT_OUTPUT, shields, messages)
        return None if judgement.blocked else (_text(judgement.released[0]), _text(judgement.released[1]))

    async def arguments(
        self, turn: turn_pb2.Turn, iteration: int, call_id: str, tool_name: str, text: str
    ) -> str | None:
        """Returns what passes of the arguments of a call, or None."""
        tool = self._config.tool(tool_name)
        assert tool is not None
        message = _said(message_pb2.ROLE_ASSISTANT, text, message_pb2.PROVENANCE_MODEL, tool_name)
        judgement = await self._run(
            turn, iteration, shield_pb2.SHIELD_POINT_TOOL_ARGUMENTS, tool.input_shields, [message], call_id
        )
        return None if judgement.blocked else _text(judgement.released[0])

    async def result(
        self, turn: turn_pb2.Turn, iteration: int, call: message_pb2.ToolCall, texts: Sequence[str]
    ) -> list[str] | None:
        """Returns what passes of the texts of a call's result, or None; an empty text is not judged."""
        tool = self._config.tool(call.name)
        assert tool is not None
        messages = [
            _said(message_pb2.ROLE_TOOL, text, message_pb2.PROVENANCE_TOOL_RESULT, call.name, call.call_id)
            for text in texts
            if text
        ]
        judgement = await self._run(
            turn, iteration, shield_pb2.SHIELD_POINT_TOOL_RESULT, tool.output_shields, messages, call.call_id
        )
        if judgement.blocked:
            return None
        released = iter(judgement.released)
        return [_text(next(released)) if text else "" for text in texts]

    async def _run(
        self,
        turn: turn_pb2.Turn,
        iteration: int,
        point: shield_pb2.ShieldPoint.ValueType,
        shield_ids: Sequence[str],
        messages: Sequence[message_pb2.Message],
        call_id: str = "",
    ) -> Judgement:
        plan = event_pb2.ShieldCallPlan(point=point, shield_ids=shield_ids, call_id=call_id)
        started = start_event(turn, iteration, shield_call=plan)
        await self._commit([started])
        judgement = await self._shields.judge(shield_ids, point, messages, turn_id=turn.turn_id, call_id=call_id)
        result = event_pb2.ShieldCallResult(verdicts=judgement.verdicts)
        completed = event_pb2.StepCompleted(shield_call=result)
        await self._commit([draft(turn.turn_id, "step_completed", completed, started.step_id)])
        return judgement


def _said(
    role: message_pb2.Role.ValueType,
    text: str,
    provenance: message_pb2.Provenance.ValueType,
    source: str = "",
    call_id: str = "",
) -> message_pb2.Message:
    part = message_pb2.ContentPart(text=text, provenance=provenance, source=source)
    return message_pb2.Message(role=role, parts=[part], call_id=call_id)


def _text(message: message_pb2.Message) -> str:
    return "".join(part.text for part in message.parts)
