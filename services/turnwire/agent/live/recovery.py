"""What a new owner writes first: that it has taken a turn over, and what becomes of the steps that were cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.turn.next import failed
from turnwire.agent.turn.steps import is_nested, open_steps
from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.common.v1 import error_pb2

if TYPE_CHECKING:
    from turnwire.agent.live.live_turn import LiveTurn

MAX_RECOVERIES = 3
"""The third recovery without a new boundary in between fails a turn: it kills no more processes."""


def recovered(live: LiveTurn, *, released: bool) -> event_pb2.StepEvent:
    """Returns the first event of a new owner. Its range covers every number that the last one may have shown."""
    payload = event_pb2.TurnRecovered(epoch=live.row.epoch, instance_id=live.row.owner, released=released)
    event = draft(live.row.turn_id, "turn_recovered", payload)
    event.first_sequence = live.log.next_sequence
    event.sequence = max(live.log.ceiling + 1, live.log.next_sequence)
    return event


def first_events(live: LiveTurn, *, released: bool) -> list[event_pb2.StepEvent]:
    """Returns how a turn goes on that ran when its owner was lost, or let go of it."""
    events = [recovered(live, released=released)]
    turn = live.log.fold.turn
    if not released and _losses_in_a_row(live) + 1 >= MAX_RECOVERIES:
        failure = error_pb2.Failure(
            reason=error_pb2.ERROR_REASON_RECOVERY_EXHAUSTED,
            message=f"The process that ran the turn ended {MAX_RECOVERIES} times at the same place. Look at the"
            " logs of the agent service before you run it again.",
            metadata={"turn_id": turn.turn_id, "recoveries": str(turn.recoveries + 1)},
        )
        return [*events, failed(turn, failure)]
    events.extend(event for step in open_steps(turn) for event in _restarted(turn.turn_id, step))
    return events


def _losses_in_a_row(live: LiveTurn) -> int:
    """How often the turn was lost since it last came on: since its state has something that is not done again.

    A process that was told to end is no sign of a poison turn.
    """
    count = 0
    nested = {step.step_id for step in live.log.fold.turn.steps if is_nested(step)}
    for event in reversed(live.log.after(0, live.log.next_sequence)):
        match event.WhichOneof("payload"):
            case "turn_recovered":
                count += not event.turn_recovered.released
            case "step_restarted" | "step_delta" | "step_started" | "step_progress":
                continue  # an attempt that begins anew tells all this again, as often as there are attempts
            case _:
                # What shields within a cut step said does not bring the turn on: the step begins anew.
                if event.step_id not in nested:
                    break
    return count


def _restarted(turn_id: str, step: step_pb2.Step) -> list[event_pb2.StepEvent]:
    """What becomes of a step that was cut. Calls of tools are asked for again under their ids, so theirs goes on."""
    if step.type == step_pb2.STEP_TYPE_TOOL_EXECUTION:
        return []
    cause = error_pb2.Failure(
        reason=error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
        message="The process that ran the turn ended; another one goes on.",
        retryable=True,
        metadata={"service": "agent"},
    )
    if is_nested(step):
        return [draft(turn_id, "step_failed", event_pb2.StepFailed(failure=cause), step.step_id)]
    restarted = event_pb2.StepRestarted(attempt=step.attempt + 1, cause=cause)
    return [draft(turn_id, "step_restarted", restarted, step.step_id)]
