"""The stored log of a turn, read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.store import events, turns
from turnwire.fold import TurnFold, fill_output

if TYPE_CHECKING:
    from turnwire.agent.store.turns import TurnRow
    from turnwire.agent.v1 import event_pb2, turn_pb2
    from turnwire.runtime.storage import Transaction


async def read_turn(
    tx: Transaction, tenant: str, turn_id: str, *, after: int = 0
) -> tuple[TurnRow, list[event_pb2.StepEvent]] | None:
    """Returns the row of a turn and its events after a number, as every reader sees them, or None."""
    row = await turns.get(tx, tenant, turn_id)
    if row is None:
        return None
    stored = await events.of_turn(tx, tenant, turn_id, after=after)
    if after and stored and stored[-1].WhichOneof("payload") == "turn_completed":
        stored = await events.of_turn(tx, tenant, turn_id)  # the end of a turn has its text from a step before
    return row, [event for event in whole(turn_id, stored) if event.sequence > after]


def whole(turn_id: str, stored: list[event_pb2.StepEvent]) -> list[event_pb2.StepEvent]:
    """Puts the texts back that a stored log has only once."""
    if stored and stored[-1].WhichOneof("payload") == "turn_completed":
        completed = stored[-1].turn_completed
        if completed.output_step_id and not completed.output.parts:
            fold = TurnFold(turn_id)
            for event in stored[:-1]:
                fold.apply(event)
            step = next((step for step in fold.turn.steps if step.step_id == completed.output_step_id), None)
            if step is not None:
                fill_output(completed.output, step)
    return stored


def folded(turn_id: str, stored: list[event_pb2.StepEvent]) -> turn_pb2.Turn:
    """Returns the state of a turn out of its stored events."""
    fold = TurnFold(turn_id)
    for event in stored:
        fold.apply(event)
    return fold.turn
