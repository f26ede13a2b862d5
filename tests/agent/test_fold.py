"""The fold: what a turn looks like out of its events."""

from __future__ import annotations

import random

import pytest

from tests.agent.turns import (
    TURN,
    completed,
    delta,
    inference_completed,
    numbered,
    started,
    step_started,
)
from turnwire.agent.log.merge import merged
from turnwire.agent.log.writer import draft
from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import message_pb2
from turnwire.fold import SequenceGapError, TurnFold

TEXT = ["Grüße ", "aus ", "der ", "Küche", " 🍳", "!"]


def _offsets(pieces: list[str]) -> list[int]:
    result, at = [], 0
    for piece in pieces:
        result.append(at)
        at += len(piece.encode())
    return result


def _turn() -> list[event_pb2.StepEvent]:
    deltas = [delta("s1", at, piece) for at, piece in zip(_offsets(TEXT), TEXT, strict=True)]
    return numbered(started(), step_started("s1"), *deltas, inference_completed("s1"), completed("s1"))


def _folded(events: list[event_pb2.StepEvent]) -> turn_pb2.Turn:
    fold = TurnFold(TURN)
    for event in events:
        fold.apply(event)
    return fold.turn


def test_a_finished_turn_has_its_text_usage_and_output():
    turn = _folded(_turn())

    assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
    assert "".join(TEXT) == turn.steps[0].inference.text
    assert "".join(TEXT) == turn.output.parts[0].text
    assert step_pb2.STEP_STATUS_COMPLETED == turn.steps[0].status
    assert 1 == turn.usage.model_calls


@pytest.mark.parametrize("seed", range(50))
def test_merging_and_cutting_anywhere_folds_to_the_same(seed: int):
    chance = random.Random(seed)
    events = _turn()
    expected = _folded(events)
    fold = TurnFold(TURN)
    position = 0
    while position < len(events):
        # A reader that resumes gets merged deltas that may begin before its position.
        begin = chance.randint(0, position)
        end = chance.randint(position + 1, len(events))
        for event in merged(events[begin:end]):
            if event.sequence > fold.last_sequence:
                fold.apply(event)
        position = end

    assert expected == fold.turn


def test_a_gap_is_refused_and_changes_nothing():
    events = _turn()
    fold = TurnFold(TURN)
    fold.apply(events[0])

    with pytest.raises(SequenceGapError) as raised:
        fold.apply(events[2])

    assert 2 == raised.value.expected
    assert 1 == fold.last_sequence


def test_an_event_that_was_seen_changes_nothing():
    events = _turn()
    fold = TurnFold(TURN)
    for event in [*events[:4], *events[:4]]:
        fold.apply(event)

    assert "".join(TEXT[:2]) == fold.turn.steps[0].inference.text


def test_a_restart_voids_the_text_of_the_attempt_before():
    restart = draft(TURN, "step_restarted", event_pb2.StepRestarted(attempt=2), "s1")
    late = delta("s1", 3, "late", attempt=1)
    turn = _folded(
        numbered(started(), step_started("s1"), delta("s1", 0, "old"), restart, late, delta("s1", 0, "new", attempt=2))
    )

    assert "new" == turn.steps[0].inference.text
    assert 2 == turn.steps[0].attempt
    assert 2 == turn.usage.model_calls


def test_tool_calls_come_from_their_deltas():
    arguments = event_pb2.DELTA_PART_ARGUMENTS
    events = numbered(
        started(),
        step_started("s1"),
        delta("s1", 0, '{"a":', part=arguments, call_id="call_1", tool_name="add"),
        delta("s1", 5, "1}", part=arguments, call_id="call_1", tool_name="add"),
        inference_completed("s1", message_pb2.ToolCall(call_id="call_1", name="add", model_call_id="x")),
    )
    (call,) = _folded(events).steps[0].inference.tool_calls

    assert ("call_1", "add", '{"a":1}', "x") == (call.call_id, call.name, call.arguments_json, call.model_call_id)


def test_payloads_of_later_versions_are_skipped():
    unknown = event_pb2.StepEvent(turn_id=TURN)
    # Field 90 is of no known payload: a message with one empty field.
    unknown.MergeFromString(bytes([0xD2, 0x05, 0x00]))
    events = numbered(started(), unknown, step_started("s1"))

    assert 3 == _folded(events).last_sequence


def test_a_copy_goes_its_own_way():
    events = _turn()
    fold = TurnFold(TURN)
    for event in events[:4]:
        fold.apply(event)
    copy = fold.copy()
    for event in events[4:]:
        copy.apply(event)

    assert _folded(events[:4]) == fold.turn
    assert _folded(events) == copy.turn


def test_what_a_tool_had_written_is_void_when_another_process_takes_the_turn_over():
    call = message_pb2.ToolCall(call_id="call_1", name="code_interpreter", arguments_json="{}")
    plan = event_pb2.StepStarted(
        type=step_pb2.STEP_TYPE_TOOL_EXECUTION,
        iteration=1,
        tool_execution=event_pb2.ToolExecutionPlan(inference_step_id="s1", call_ids=["call_1"]),
    )
    written = event_pb2.StepDelta(part=event_pb2.DELTA_PART_TOOL_OUTPUT, call_id="call_1", attempt=1, text="begun")
    result = message_pb2.ToolResult(call_id="call_1", name="code_interpreter", content="42")
    seen = [
        started(),
        step_started("s1"),
        inference_completed("s1", call),
        draft(TURN, "step_started", plan, "s2"),
        draft(TURN, "step_delta", written, "s2"),
        draft(TURN, "turn_recovered", event_pb2.TurnRecovered(epoch=2)),
        draft(TURN, "tool_call_completed", event_pb2.ToolCallCompleted(result=result), "s2"),
    ]
    stored = [event for event in seen if event.WhichOneof("payload") != "step_delta"]

    assert "begun" == _folded(numbered(*seen[:5])).steps[1].tool_execution.executions[0].output
    expected = _folded(numbered(*stored)).steps
    assert expected == _folded(numbered(*seen)).steps
    fold = TurnFold(TURN)
    for event in seen:
        fold.apply(event)
        assert TURN == fold.turn.turn_id  # who looks at it puts together what has come so far
    assert expected == fold.turn.steps
