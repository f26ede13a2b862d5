"""The bench runs, counts right, and has no figures when a turn was wrong. Nothing here is about speed."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from bench.plan import Plan
from bench.processes import ROOT, cpu_seconds, memory
from bench.report import percentile
from bench.script import Script
from bench.store import counted
from bench.verification import BadTurn, check_pieces, check_turn, check_words
from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.inference.v1 import inference_service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = ["a-1 ", "a-2 ", "a-3 ", "a-4 "]
QUICK = Plan.quick()


async def _bench(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.turn",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("upstream", "direct"),
    [pytest.param("openai", "upstream", marks=pytest.mark.bars), ("scripted", "inference service")],
)
async def test_a_quick_bench_verifies_every_turn_of_mesh_and_relay(upstream: str, direct: str, tmp_path: Path):
    figures = tmp_path / "figures.json"
    code, output, errors = await _bench("--quick", "--json", str(figures), "--upstream", upstream)

    assert 0 == code, errors
    found = json.loads(figures.read_text())
    both = QUICK.warm_up_turns + QUICK.first_token_samples + sum(QUICK.at_once.values()) + QUICK.paced_at_once
    counted_turns = sum(max(QUICK.store_turns, at_once) for at_once in QUICK.at_once)
    expected = {
        direct: QUICK.warm_up_turns + QUICK.first_token_samples,
        "relay": both,
        "mesh": both + counted_turns,
        "mesh on PostgreSQL": QUICK.warm_up_turns + counted_turns,
    }
    assert expected == found["turns_verified"]
    [repetition] = found["repetitions"]
    assert {direct, "relay", "mesh"} == set(repetition["first_token"])
    for runs in [*repetition["at_once"].values(), repetition["paced"]]:
        assert {"agent", "inference", "client"} == set(runs["mesh"]["cpu_seconds"])
        assert {"relay", "source", "client"} == set(runs["relay"]["cpu_seconds"])
        assert all(seconds > 0 for run in runs.values() for seconds in run["cpu_seconds"].values())
    # The upstream kept its pace: there are as many gaps as tokens but one, of a twentieth of a second each.
    assert repetition["paced"]["mesh"]["seconds"] >= (QUICK.tokens - 1) / 20
    turns, stored = found["store"]["1"]
    # Turns that come one by one commit twice each; the sweep of the agent service may have committed in between.
    assert 2 == round(stored["commits"] / turns)
    assert stored["grown_bytes"] > 0
    turns, in_server = found["postgres"]["1"]
    assert 2 == round(in_server["commits"] / turns)
    assert in_server["written_bytes"] > 0
    assert in_server["database_cpu_seconds"] > 0
    assert stored["agent_cpu_seconds"] > 0
    titles = [line for line in output.splitlines() if line.startswith("### ")]
    assert 5 == len(titles)


@pytest.mark.mesh
async def test_an_upstream_that_swaps_two_tokens_leaves_no_figures():
    code, output, errors = await _bench("--quick", "--upstream-module", "tests.bench.lying_upstream")

    assert 1 == code
    assert "" == output
    assert "a bad turn, so there is no result" in errors
    assert "its text differs from character" in errors


def test_a_right_turn_is_taken():
    turn = check_turn(_events(), "".join(WORDS), len(WORDS))

    assert "".join(WORDS) == turn.output.parts[0].text


def test_merged_deltas_are_right_too():
    events = _events()
    first, second = events[2], events.pop(3)
    first.sequence = second.sequence
    first.step_delta.text += second.step_delta.text

    check_turn(events, "".join(WORDS), len(WORDS))


def _without_a_delta(events: list[event_pb2.StepEvent]) -> None:
    del events[3]


def _with_a_delta_twice(events: list[event_pb2.StepEvent]) -> None:
    events.insert(3, events[3])


def _with_an_end_missing(events: list[event_pb2.StepEvent]) -> None:
    events.pop()


def _with_two_ends(events: list[event_pb2.StepEvent]) -> None:
    again = event_pb2.StepEvent()
    again.CopyFrom(events[-1])
    again.first_sequence = again.sequence = events[-1].sequence + 1
    again.ClearField("turn_completed")
    again.turn_failed.SetInParent()
    events.append(again)


def _with_a_wrong_offset(events: list[event_pb2.StepEvent]) -> None:
    events[4].step_delta.offset += 1


def _with_another_word(events: list[event_pb2.StepEvent]) -> None:
    events[3].step_delta.text = "b-2 "


def _with_an_event_of_another_turn(events: list[event_pb2.StepEvent]) -> None:
    events[3].turn_id = "turn_other"


def _with_a_step_that_changes_its_id(events: list[event_pb2.StepEvent]) -> None:
    events[-2].step_id = "step_other"


def _with_a_second_attempt(events: list[event_pb2.StepEvent]) -> None:
    events[3].step_delta.attempt = 2


def _with_tokens_uncounted(events: list[event_pb2.StepEvent]) -> None:
    events[-2].step_completed.inference.usage.completion_tokens = 3
    events[-1].turn_completed.usage.completion_tokens = 3


def _with_a_boundary_twice(events: list[event_pb2.StepEvent]) -> None:
    events.insert(-1, events[-2])


def _with_a_step_that_never_ends(events: list[event_pb2.StepEvent]) -> None:
    del events[-2]
    events[-1].first_sequence = events[-1].sequence = events[-2].sequence + 1


def _with_nothing(events: list[event_pb2.StepEvent]) -> None:
    events.clear()


@pytest.mark.parametrize(
    "damage",
    [
        _without_a_delta,
        _with_a_delta_twice,
        _with_an_end_missing,
        _with_two_ends,
        _with_a_wrong_offset,
        _with_another_word,
        _with_an_event_of_another_turn,
        _with_a_step_that_changes_its_id,
        _with_a_second_attempt,
        _with_tokens_uncounted,
        _with_a_boundary_twice,
        _with_a_step_that_never_ends,
        _with_nothing,
    ],
)
def test_a_damaged_turn_is_refused(damage: Callable[[list[event_pb2.StepEvent]], None]):
    events = _events()
    damage(events)

    with pytest.raises(BadTurn):
        check_turn(events, "".join(WORDS), len(WORDS))


def test_a_relayed_stream_without_its_end_is_refused():
    text = [inference_service_pb2.ChatCompletionResponse(text={"text": word}) for word in WORDS]  # pyright: ignore[reportArgumentType] - protobuf takes a mapping for a message
    end = inference_service_pb2.ChatCompletionResponse(completed=inference_service_pb2.ChatCompletionCompleted())

    check_pieces([*text, end], "a-", WORDS)
    with pytest.raises(BadTurn, match="its pieces are"):
        check_pieces(text, "a-", WORDS)
    with pytest.raises(BadTurn, match="its text differs"):
        check_pieces([*text[1:], end], "a-", WORDS)


def test_tokens_that_were_joined_are_refused():
    with pytest.raises(BadTurn, match="3 messages for 4 tokens"):
        check_words("a-", WORDS, [WORDS[0] + WORDS[1], *WORDS[2:]])


@pytest.mark.parametrize("paced", [True, False])
def test_a_prompt_asks_for_the_answer_it_came_from(paced: bool):
    script = Script("t7-", 3, paced=paced)

    assert script == Script.read(script.prompt, 3)
    assert ["t7-1 ", "t7-2 ", "t7-3 "] == script.words


@pytest.mark.parametrize("checkpointed", [False, True])
def test_commits_are_counted_whether_or_not_the_log_begins_anew(tmp_path: Path, checkpointed: bool):
    database = tmp_path / "agent.sqlite3"
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE schema_version (version BIGINT)")
        writer.execute("CREATE TABLE texts (text TEXT)")
        # More than comes later: where the log begins anew, its old frames still stand behind the new ones.
        for _ in range(200):
            writer.execute("INSERT INTO texts VALUES ('before')")
        if checkpointed:
            writer.execute("PRAGMA wal_checkpoint(FULL)")

        with counted(database) as stored:
            for _ in range(7):
                writer.execute("BEGIN")
                writer.execute("INSERT INTO texts VALUES (?)", ("x" * 10_000,))
                writer.execute("INSERT INTO texts VALUES ('with it')")
                writer.execute("COMMIT")

    assert 7 == stored.commits
    assert 70_000 < stored.grown_bytes < 150_000
    assert stored.written_bytes > stored.grown_bytes


def test_the_clock_of_a_process_is_its_cpu_time():
    mine = time.process_time()
    theirs = cpu_seconds(os.getpid())

    assert mine <= theirs < mine + 0.5


def test_memory_is_that_of_the_process():
    held = bytearray(b"x") * (64 * 1024 * 1024)
    found = memory(os.getpid())

    assert len(held) < found.now <= found.peak


async def test_a_process_that_has_ended_has_no_memory():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()

    with pytest.raises(RuntimeError, match="has ended"):
        memory(process.pid)


def test_a_percentile_is_one_of_the_values():
    values = [float(value) for value in range(1, 101)]

    assert 50.0 == percentile(values[::-1], 0.5)
    assert 99.0 == percentile(values, 0.99)
    assert 7.0 == percentile([7.0], 0.99)


def _events() -> list[event_pb2.StepEvent]:
    """Returns the events of a right turn."""
    events = [_event("turn_started", event_pb2.TurnStarted(session_id="sess_1", ordinal=1), step_id="")]
    events.append(_event("step_started", event_pb2.StepStarted(type=step_pb2.STEP_TYPE_INFERENCE)))
    offset = 0
    for word in WORDS:
        delta = event_pb2.StepDelta(attempt=1, part=event_pb2.DELTA_PART_ANSWER, offset=offset, text=word)
        events.append(_event("step_delta", delta))
        offset += len(word)
    completed: Any = event_pb2.StepCompleted()
    completed.inference.usage.completion_tokens = len(WORDS)
    events.append(_event("step_completed", completed))
    ended = event_pb2.TurnCompleted(output_step_id="step_1")
    ended.usage.completion_tokens = len(WORDS)
    events.append(_event("turn_completed", ended, step_id=""))
    for number, event in enumerate(events, start=1):
        event.first_sequence = event.sequence = number
    return events


def _event(payload: str, value: Any, *, step_id: str = "step_1") -> event_pb2.StepEvent:
    event = event_pb2.StepEvent(turn_id="turn_1", step_id=step_id)
    getattr(event, payload).CopyFrom(value)
    return event
