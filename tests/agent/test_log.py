"""The log of a turn in memory: what may be seen when, and what cursors give."""

from __future__ import annotations

import asyncio

import pytest

from tests.agent.turns import TURN, completed, delta, inference_completed, started, step_started
from tests.mesh.asking import check_log, folded
from turnwire.agent.log.cursor import Cursor
from turnwire.agent.log.merge import MOST_TEXT_BYTES, pieces
from turnwire.agent.log.turn_log import LogReplaced, TurnLog
from turnwire.agent.log.writer import draft
from turnwire.agent.v1 import event_pb2, turn_pb2
from turnwire.fold import TurnFold


def _log(*events: event_pb2.StepEvent, ceiling: int = 100) -> TurnLog:
    log = TurnLog(TURN)
    log.append_boundary(events)
    log.commit(log.next_sequence - 1, ceiling)
    return log


def _cursor(log: TurnLog, after: int = 0, *, follow: bool = False, heartbeat: float = 60.0) -> Cursor:
    return Cursor(log, after, follow_pauses=follow, heartbeat_seconds=heartbeat)


async def _all(cursor: Cursor) -> list[event_pb2.StepEvent]:
    return [event async for event in cursor.events()]


def test_a_boundary_event_is_not_seen_before_it_is_committed():
    log = _log(started())
    log.append_boundary([step_started("s1")])
    assert 1 == log.last_sequence

    log.commit(2, 100)
    assert 2 == log.last_sequence


def test_deltas_wait_behind_an_uncommitted_boundary():
    log = _log(started(), step_started("s1"))
    log.append_boundary([inference_completed("s1")])
    log.append_delta(delta("s2", 0, "x"))
    assert 2 == log.last_sequence

    log.commit(3, 100)
    assert 4 == log.last_sequence


def test_no_delta_above_the_ceiling_is_seen():
    log = _log(started(), step_started("s1"), ceiling=3)
    log.append_delta(delta("s1", 0, "a"))
    log.append_delta(delta("s1", 1, "b"))
    assert 3 == log.last_sequence
    assert 4 == log.preview().last_sequence

    log.commit(0, 10)
    assert 4 == log.last_sequence


def test_a_stored_log_goes_on_after_its_last_number():
    log = _log(started(), step_started("s1"))
    again = TurnLog.stored(TURN, log.after(0, 10), 100)

    assert 3 == again.next_sequence
    assert log.fold.turn == again.fold.turn


async def test_a_slow_reader_gets_fewer_larger_events():
    log = _log(started(), step_started("s1"), ceiling=200)
    cursor = _cursor(log).events()
    seen = [await anext(cursor), await anext(cursor)]
    for index in range(100):
        log.append_delta(delta("s1", index, "x"))
    seen.append(await anext(cursor))
    await cursor.aclose()

    assert (3, 102) == (seen[-1].first_sequence, seen[-1].sequence)
    assert 100 == len(seen[-1].step_delta.text)


async def test_what_a_reader_gets_at_once_is_bounded_in_bytes_whatever_the_text_is_written_in():
    log = _log(started(), step_started("s1"), ceiling=3000)
    size = len("😀".encode())
    for index in range(2000):
        log.append_delta(delta("s1", index * 10 * size, "😀" * 10))
    log.append_boundary([inference_completed("s1"), completed("s1")])
    log.commit(2004, 3000)
    events = await _all(_cursor(log))

    longest = max(len(event.step_delta.text.encode()) for event in events)
    assert MOST_TEXT_BYTES - 10 * size < longest <= MOST_TEXT_BYTES
    check_log(events)
    assert "😀" * 20_000 == folded(events).steps[0].inference.text


@pytest.mark.parametrize("character", ["x", "é", "…", "😀"])
def test_a_long_text_is_cut_between_characters_into_pieces_of_at_most_so_many_bytes(character: str):
    found = list(pieces("a" + character * 1000, 64))

    assert "a" + character * 1000 == "".join(found)
    assert all(60 < len(piece.encode()) <= 64 for piece in found[:-1])
    assert [""] == list(pieces("", 64))


async def test_a_cursor_ends_after_the_terminal_event_only():
    log = _log(started(), step_started("s1"))
    reading = asyncio.create_task(_all(_cursor(log)))
    log.append_delta(delta("s1", 0, "hi"))
    log.append_boundary([inference_completed("s1"), completed("s1")])
    log.commit(5, 100)
    events = await reading

    assert "turn_completed" == events[-1].WhichOneof("payload")
    fold = TurnFold(TURN)
    for event in events:
        fold.apply(event)
    assert log.fold.turn == fold.turn


async def test_a_pause_ends_the_stream_unless_it_is_followed():
    awaiting = draft(TURN, "turn_awaiting_input", event_pb2.TurnAwaitingInput())
    log = _log(started(), step_started("s1"), awaiting)
    assert "turn_awaiting_input" == (await _all(_cursor(log)))[-1].WhichOneof("payload")

    following = asyncio.create_task(_all(_cursor(log, follow=True)))
    received = event_pb2.TurnInputReceived(request_id="r")
    log.append_boundary([draft(TURN, "turn_input_received", received), completed("s1")])
    log.commit(5, 100)
    assert "turn_completed" == (await following)[-1].WhichOneof("payload")
    assert turn_pb2.TURN_STATUS_COMPLETED == log.fold.turn.status


async def test_silence_gives_heartbeats_that_repeat_the_last_number():
    log = _log(started(), step_started("s1"))
    cursor = _cursor(log, 2, heartbeat=0.01).events()
    event = await anext(cursor)
    await cursor.aclose()

    assert "heartbeat" == event.WhichOneof("payload")
    assert (2, 2, "s1") == (event.first_sequence, event.sequence, event.step_id)


async def test_a_reader_that_leaves_leaves_nothing():
    log = _log(started(), step_started("s1"))
    reading = asyncio.create_task(_all(_cursor(log)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)

    assert not log._watchers


async def test_nothing_is_shown_while_the_lease_is_not_good():
    good = False
    log = _log(started(), step_started("s1"))
    log.show_while(lambda: good)
    cursor = _cursor(log, heartbeat=0.01).events()
    first = asyncio.ensure_future(anext(cursor))
    done, _ = await asyncio.wait({first}, timeout=0.1)
    assert not done  # no event, and no heartbeat
    good = True
    log.wake()
    assert "turn_started" == (await first).WhichOneof("payload")
    good = False
    second = asyncio.ensure_future(anext(cursor))
    done, _ = await asyncio.wait({second}, timeout=0.1)
    assert not done  # though it was read together with the first
    good = True
    log.wake()
    assert "step_started" == (await second).WhichOneof("payload")
    await cursor.aclose()


async def test_the_reader_of_a_log_that_was_replaced_goes_on_elsewhere_at_once():
    log = _log(started(), step_started("s1"))
    cursor = _cursor(log).events()
    await anext(cursor)
    log.append_delta(delta("s1", 0, "never stored"))
    log.replace()
    with pytest.raises(LogReplaced):
        await anext(cursor)


def test_a_mirror_takes_each_number_once_however_it_comes():
    log = _log(started(), step_started("s1"), ceiling=2)
    live = [delta("s1", 0, "a"), delta("s1", 1, "b")]
    for number, event in enumerate(live, start=3):
        event.first_sequence = event.sequence = number
    log.mirror(live[:1])
    stored = delta("s1", 0, "abc")
    stored.first_sequence, stored.sequence = 3, 5
    log.mirror([stored], ceiling=9)
    log.mirror(live)

    assert 5 == log.last_sequence
    assert 9 == log.ceiling
    assert "abc" == log.fold.turn.steps[0].inference.text
    assert [stored] == log.after(3, 10)
