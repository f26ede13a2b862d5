"""What a new owner does with a turn that was lost: it goes on, unless it was lost again and again at one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.turns import TURN, inference_completed, numbered, row, started, step_started
from turnwire.agent.live.live_turn import LiveTurn
from turnwire.agent.live.recovery import MAX_RECOVERIES, first_events
from turnwire.agent.log.turn_log import TurnLog
from turnwire.agent.log.writer import draft
from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.common.v1 import error_pb2, message_pb2, shield_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

CALL = message_pb2.ToolCall(call_id="c1", name="pay")


def _lost(events: list[event_pb2.StepEvent]) -> LiveTurn:
    """A turn whose log is these events, and which a new owner has just claimed."""
    return LiveTurn(
        tenant="t", row=row("new", epoch=9, sequence_ceiling=0), log=TurnLog.stored(TURN, numbered(*events), 0)
    )


def _calling() -> list[event_pb2.StepEvent]:
    """A turn whose one tool runs."""
    plan = event_pb2.ToolExecutionPlan(call_ids=["c1"], inference_step_id="s1")
    tools = event_pb2.StepStarted(type=step_pb2.STEP_TYPE_TOOL_EXECUTION, iteration=1, tool_execution=plan)
    return [
        started(),
        step_started("s1"),
        inference_completed("s1", CALL),
        draft(TURN, "step_started", tools, "s2"),
        draft(TURN, "tool_call_started", event_pb2.ToolCallStarted(call_id="c1"), "s2"),
    ]


def _progress() -> list[event_pb2.StepEvent]:
    counted = event_pb2.StepProgress(done=1, total=3, unit="files", call_id="c1")
    return [draft(TURN, "step_progress", counted, "s2")]


def _judged() -> list[event_pb2.StepEvent]:
    plan = event_pb2.ShieldCallPlan(point=shield_pb2.SHIELD_POINT_TOOL_RESULT, shield_ids=["x"], call_id="c1")
    begun = event_pb2.StepStarted(type=step_pb2.STEP_TYPE_SHIELD_CALL, iteration=1, shield_call=plan)
    ended = event_pb2.StepCompleted(shield_call=event_pb2.ShieldCallResult())
    return [draft(TURN, "step_started", begun, "s3"), draft(TURN, "step_completed", ended, "s3")]


def _result() -> list[event_pb2.StepEvent]:
    result = message_pb2.ToolResult(call_id="c1", name="pay", content="paid")
    return [draft(TURN, "tool_call_completed", event_pb2.ToolCallCompleted(result=result), "s2")]


def _recoveries(number: int, *, released: bool = False) -> list[event_pb2.StepEvent]:
    return [draft(TURN, "turn_recovered", event_pb2.TurnRecovered(released=released)) for _ in range(number)]


def _fails(live: LiveTurn, *, released: bool = False) -> bool:
    last = first_events(live, released=released)[-1]
    return last.turn_failed.failure.reason == error_pb2.ERROR_REASON_RECOVERY_EXHAUSTED


@pytest.mark.parametrize(
    "again", [list[event_pb2.StepEvent], _progress, _judged], ids=["nothing", "progress", "shield"]
)
def test_a_turn_that_ends_its_process_after_the_same_events_again_and_again_is_failed(
    again: Callable[[], list[event_pb2.StepEvent]],
):
    events = [*_calling(), *again()]
    for number in range(1, MAX_RECOVERIES):
        assert not _fails(_lost(events)), f"recovery {number}"
        events += [*_recoveries(1), *again()]

    assert _fails(_lost(events))


def test_a_turn_that_came_on_in_between_is_no_poison():
    events = [*_calling(), *_recoveries(MAX_RECOVERIES - 1), *_result()]

    assert not _fails(_lost(events))


def test_owners_that_let_go_are_not_counted():
    assert not _fails(_lost([*_calling(), *_recoveries(9, released=True)]))
    assert not _fails(_lost([*_calling(), *_recoveries(MAX_RECOVERIES - 1)]), released=True)
