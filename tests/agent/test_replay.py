"""The recorded turns of every tagged version: this version decides the same, and tells where it would not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import turnwire
from tests.mesh.recorder import KINDS, RECORDINGS, lines, parsed
from turnwire import __version__
from turnwire.agent import records
from turnwire.agent.replay import Difference, replay
from turnwire.agent.v1 import agent_service_pb2 as messages
from turnwire.agent.v1 import event_pb2
from turnwire.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = sorted(RECORDINGS.glob("*/*.jsonl"))


def _recording(kind: str) -> records.Recording:
    return records.read(_records(kind))


def _records(kind: str) -> list[messages.TurnRecord]:
    return parsed((RECORDINGS / __version__ / f"{kind}.jsonl").read_text(encoding="utf-8"))


def _event(recording: records.Recording, kind: str, place: int = 0) -> event_pb2.StepEvent:
    return [event for event in recording.events if event.WhichOneof("payload") == kind][place]


def test_this_version_has_a_recording_of_each_kind():
    assert {f"{kind}.jsonl" for kind in KINDS} <= {file.name for file in FILES if file.parent.name == __version__}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_recorded_turn_is_decided_the_same_again(file: Path):
    result = replay(records.read(parsed(file.read_text(encoding="utf-8"))))

    assert result.difference is None
    assert result.decisions >= 2


@pytest.mark.parametrize(
    ("kind", "decisions"),
    [("plain", 2), ("tools", 6), ("pause", 7), ("refusal", 2), ("retrieval", 4), ("recovered", 2)],
)
def test_each_decision_is_counted_once(kind: str, decisions: int):
    assert decisions == replay(_recording(kind)).decisions


def test_the_recordings_hold_what_they_are_named_for():
    kinds = {
        kind: {event.WhichOneof("payload") for event in _recording(kind).events} for kind in ("pause", "recovered")
    }

    assert {"turn_awaiting_input", "turn_input_received"} <= kinds["pause"]
    assert {"turn_recovered", "step_restarted"} <= kinds["recovered"]
    assert 2 == len(_event(_recording("retrieval"), "turn_completed").turn_completed.output.citations)
    assert "I do not talk of evil." == _recording("refusal").turn.output.parts[0].text
    assert ["echo", "failing"] == [call.name for call in _recording("tools").turn.steps[0].inference.tool_calls]


def _other_model(recording: records.Recording) -> int:
    event = _event(recording, "step_started")
    event.step_started.inference.model_id = "another"
    return event.sequence


def _other_call(recording: records.Recording) -> int:
    event = _event(recording, "step_started", 1)
    event.step_started.tool_execution.call_ids[0] = "call_other"
    return event.sequence


def _other_answer(recording: records.Recording) -> int:
    event = _event(recording, "turn_completed")
    event.turn_completed.output.citations[1].document_id = "other.md"
    return event.sequence


def _no_pause(recording: records.Recording) -> int:
    event = _event(recording, "turn_awaiting_input")
    event.turn_awaiting_input.awaited_input.requests[0].kind = 2  # pyright: ignore[reportAttributeAccessIssue] - an approval
    return event.sequence


def _refusal_lost(recording: records.Recording) -> int:
    event = _event(recording, "step_completed")
    for verdict in event.step_completed.shield_call.verdicts:
        verdict.level = 1  # pyright: ignore[reportAttributeAccessIssue] - what passes
    return recording.events[-1].sequence


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        ("plain", _other_model, "step_started.inference.model_id"),
        ("tools", _other_call, "step_started.tool_execution.call_ids"),
        ("retrieval", _other_answer, "turn_completed.output.citations[1].document_id"),
        ("pause", _no_pause, "turn_awaiting_input.awaited_input.requests[0].kind"),
        ("refusal", _refusal_lost, "step_started"),
    ],
    ids=["model", "call", "citation", "pause", "verdict"],
)
def test_the_first_difference_is_named(kind: str, change: Callable[[records.Recording], int], field: str):
    recording = _recording(kind)
    sequence = change(recording)
    difference = replay(recording).difference

    assert difference is not None
    assert (sequence, True) == (difference.sequence, field.startswith(difference.field) or difference.field == field)
    assert difference.expected != difference.got


def test_an_answer_that_nobody_asked_for_is_a_difference():
    recording = _recording("plain")
    last = recording.events.pop()
    recording.events.pop()
    recording.events.append(last)
    difference = replay(recording).difference

    assert difference == Difference(last.sequence, "payload", "turn_completed", "RunInference")


def test_a_log_that_stops_early_is_a_difference():
    recording = _recording("plain")
    recording.events.pop()
    difference = replay(recording).difference

    assert difference is not None
    assert ("the end of the log", "turn_completed") == (difference.expected, difference.got)


def test_the_command_counts_what_is_the_same(tmp_path: Path):
    done = turnwire("turns", "replay", *(str(file) for file in FILES), cwd=tmp_path)

    assert 0 == done.code, done
    assert len(FILES) == done.out.count("decisions are the same")


def test_the_command_shows_the_first_difference_and_fails(tmp_path: Path):
    recording = _recording("plain")
    sequence = _other_model(recording)
    altered = tmp_path / "altered.jsonl"
    written = records.written(recording.header, None, [], recording.events)
    altered.write_text(lines(list(written)), encoding="utf-8")
    done = turnwire("turns", "replay", str(altered), cwd=tmp_path)

    assert 1 == done.code
    assert f"differs at event {sequence}, field step_started.inference.model_id" in done.out
    assert "expected 'another'" in done.out
    assert "got      'scripted'" in done.out


def _cut(taken: list[messages.TurnRecord]) -> None:
    del taken[-1]


def _gap(taken: list[messages.TurnRecord]) -> None:
    place = next(index for index, record in enumerate(taken) if record.event.WhichOneof("payload") == "step_started")
    del taken[place]
    _sealed(taken)


def _altered(taken: list[messages.TurnRecord]) -> None:
    next(record for record in taken if record.WhichOneof("record") == "event").event.turn_started.ordinal = 7


def _format(taken: list[messages.TurnRecord]) -> None:
    taken[0].header.format = 2
    _sealed(taken)


def _config(taken: list[messages.TurnRecord]) -> None:
    taken[0].header.config.instructions = "Be evil."
    _sealed(taken)


def _second_end(taken: list[messages.TurnRecord]) -> None:
    again = messages.TurnRecord()
    again.CopyFrom(taken[-2])
    again.event.first_sequence = again.event.sequence = taken[-2].event.sequence + 1
    taken.insert(-1, again)
    _sealed(taken)


def _open(taken: list[messages.TurnRecord]) -> None:
    del taken[-2]
    _sealed(taken)


def _other_turn(taken: list[messages.TurnRecord]) -> None:
    taken[-2].event.turn_id = "turn_other"
    _sealed(taken)


def _headless(taken: list[messages.TurnRecord]) -> None:
    del taken[0]
    _sealed(taken)


def _fewer(taken: list[messages.TurnRecord]) -> None:
    del taken[3]


def _sealed(taken: list[messages.TurnRecord]) -> None:
    """Gives altered records a digest that fits."""
    from turnwire.agent.records import _digest  # pyright: ignore[reportPrivateUsage] - what a forger would do

    taken[-1].end.records = len(taken) - 1
    taken[-1].end.sha256 = _digest(taken[:-1])


CHANGES = {
    "cut": (_cut, "the export was cut"),
    "gap": (_gap, "expected an event from sequence"),
    "altered": (_altered, "records were altered"),
    "format": (_format, "reads format 1"),
    "config": (_config, "is not the configuration"),
    "second end": (_second_end, "comes after the end"),
    "open": (_open, "has no end"),
    "other turn": (_other_turn, "of another turn"),
    "headless": (_headless, "no header"),
    "fewer": (_fewer, "some are missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_records_that_are_not_whole_are_refused(name: str):
    change, told = CHANGES[name]
    taken = _records("tools")
    change(taken)
    with pytest.raises(InvalidArgument, match=told):
        records.read(taken)


def test_every_altered_byte_is_seen():
    good = _records("tools")
    for index in range(len(good) - 1):
        taken = [messages.TurnRecord.FromString(record.SerializeToString()) for record in good]
        taken[index].event.event_time.nanos += 1
        with pytest.raises(InvalidArgument):
            records.read(taken)
