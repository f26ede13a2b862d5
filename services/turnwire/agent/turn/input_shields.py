"""A SHIELD_CALL step on what the user said: it is in no event before its shields pass it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.v1 import event_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.turn.shields import Shields
    from turnwire.agent.v1 import step_pb2, turn_pb2
    from turnwire.common.v1 import message_pb2


class InputShieldStep:
    """Judges the input of one turn."""

    def __init__(self, shields: Shields, held: Sequence[message_pb2.Message]) -> None:
        """`held` is the input that waits."""
        self._shields = shields
        self._held = held

    async def run(self, turn: turn_pb2.Turn, step: step_pb2.Step) -> list[event_pb2.StepEvent]:
        """Returns the end of the step, with the verdicts and what passed."""
        shielded = step.shield_call
        judgement = await self._shields.judge(shielded.shield_ids, shielded.point, self._held, turn_id=turn.turn_id)
        result = event_pb2.ShieldCallResult(verdicts=judgement.verdicts, released=judgement.released)
        return [draft(turn.turn_id, "step_completed", event_pb2.StepCompleted(shield_call=result), step.step_id)]
