"""`turnwire ask` with pipes: what goes where, and how it ends."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import Done, turnwire
from turnwire.agent.v1 import event_pb2, turn_pb2
from turnwire.cli.showing import TurnPrinter
from turnwire.common.v1 import message_pb2
from turnwire.ids import new_id

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Mesh

pytestmark = pytest.mark.mesh


def test_what_is_piped_is_the_answer_and_nothing_else(mesh: Mesh):
    ended = mesh.turnwire("ask", "hello")
    assert (0, "Hi there, friend.\n") == (ended.code, ended.out)


def test_the_turn_is_told_beside_the_answer(mesh: Mesh):
    ended = mesh.turnwire("ask", "in pieces")
    assert "scripted/scripted" in ended.err
    figures = re.search(
        r"(\d+) tokens read, 3 written in [\d.]+ s, first token after [\d.]+ s, (\d+) tokens/s", ended.err
    )
    assert figures is not None, ended.err
    assert int(figures[1]) > 0
    assert 1 <= int(figures[2]) <= 16  # the script writes 10 a second, the first of three at once
    assert re.search(r"turn_\w+ in sess_\w+", ended.err)


def test_what_is_told_of_a_call_names_its_tool(capsys: pytest.CaptureFixture[str]):
    called = event_pb2.InferenceResult(tool_calls=[message_pb2.ToolCall(call_id="call_1", name="search")])
    again = event_pb2.StepProgress(done=2, total=3, unit="attempts", call_id="call_1")
    lost = turn_pb2.CancelledCall(call_id="call_1", outcome=turn_pb2.CancelledCall.OUTCOME_UNKNOWN)
    printer = TurnPrinter()
    printer.show(event_pb2.StepEvent(step_completed=event_pb2.StepCompleted(inference=called)))
    printer.show(event_pb2.StepEvent(step_progress=again))
    printer.show(event_pb2.StepEvent(turn_cancelled=event_pb2.TurnCancelled(calls=[lost])))
    told = capsys.readouterr().err
    assert "search: 2 of 3 attempts" in told
    assert "what search did is not known" in told


def test_quiet_tells_the_answer_only(mesh: Mesh):
    assert Done(0, "Hi there, friend.\n", "") == mesh.turnwire("ask", "hello", "--quiet")


def test_reasoning_is_shown_and_is_no_part_of_the_answer(mesh: Mesh):
    ended = mesh.turnwire("ask", "think")
    assert "Done.\n" == ended.out
    assert "Let me see." in ended.err


def test_json_is_one_event_a_line_from_the_first_to_the_last(mesh: Mesh):
    ended = mesh.turnwire("ask", "hello", "--json")
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert (0, "") == (ended.code, ended.err)
    assert "turn_started" in events[0]
    assert "Hi there, friend." == events[-1]["turn_completed"]["output"]["parts"][0]["text"]


def test_a_text_that_a_restart_took_back_is_not_in_what_is_piped(mesh: Mesh):
    ended = mesh.turnwire("ask", "flaky")
    assert (0, "A whole answer.\n") == (ended.code, ended.out)
    assert "starting the step again" in ended.err


def test_a_turn_that_fails_says_why_and_ends_with_1(mesh: Mesh):
    ended = mesh.turnwire("ask", "broken")
    assert (1, "") == (ended.code, ended.out)
    assert "The turn failed: The provider scripted fails as its script says. [ERROR_REASON_PROVIDER_ERROR]" in ended.err


def test_a_turn_that_waits_ends_with_3_and_says_how_to_go_on(mesh: Mesh, caller: str):
    ended = mesh.turnwire("ask", "weather", "--agent", caller)
    assert (3, "") == (ended.code, ended.out)
    assert 'calls get_weather({"city": "Bonn"})' in ended.err
    hint = re.search(r"turnwire (turns submit \S+ \S+) RESULT --watch", ended.err)
    assert hint is not None, ended.err
    going_on = mesh.turnwire(*hint[1].split(), "sunny", "--watch")
    assert (0, "It is sunny.\n") == (going_on.code, going_on.out)
    assert "get_weather → sunny" in going_on.err
    assert re.search(r"3 steps, [\d.]+ s in all", going_on.err)
    again = mesh.turnwire(*hint[1].split(), "rainy")
    assert 1 == again.code
    assert "has ended" in again.err


def test_a_question_comes_from_standard_input(mesh: Mesh):
    assert "Hi there, friend.\n" == mesh.turnwire("ask", stdin="hello, Zoë".encode()).out


def test_a_file_is_asked_about(mesh: Mesh):
    file = mesh.folder / "text.txt"
    file.write_text("endless\n\nhello", encoding="utf-8")
    ended = mesh.turnwire("ask", "about", "--file", str(file), "--session", _session(mesh), "--model", "scripted")
    assert "Hi there, friend.\n" == ended.out
    turn = mesh.ask("list_turns", page_size=200).turns[-1]
    assert "about\n\nendless\n\nhello" == turn.input[0].parts[0].text


def test_standard_input_is_asked_about(mesh: Mesh):
    ended = mesh.turnwire("ask", "about", "--file", "-", stdin=b"hello")
    assert "Hi there, friend.\n" == ended.out


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        ((), b"", "say something"),
        (("   ",), b"", "say something"),
        ((), b"caf\xe9", "standard input is no text in UTF-8 (byte 3)"),
        (("hello", "--file", "nowhere.txt"), b"", "does not exist"),
        (("hello", "--max-tokens", "0"), b"", "--max-tokens"),
        (("hello", "--agent", "assistant", "--session", "sess_1"), b"", "leave out --agent or --session"),
    ],
    ids=["nothing", "blank", "not UTF-8", "no file", "no tokens", "agent and session"],
)
def test_wrong_usage_ends_with_2(mesh: Mesh, arguments: tuple[str, ...], stdin: bytes, told: str):
    ended = mesh.turnwire("ask", *arguments, stdin=stdin)
    assert (2, "") == (ended.code, ended.out)
    assert told in ended.err


def test_options_reach_the_turn(mesh: Mesh):
    turn_id = new_id("turn")
    options = ("--greedy", "--max-tokens", "2", "--instructions", "Be brief.", "--turn-id", turn_id)
    ended = mesh.turnwire("ask", "hello", *options)
    assert "Hi there,\n" == ended.out
    assert "the answer is cut" in ended.err
    config = mesh.ask("get_turn", turn_id).overrides.config
    assert "greedy" == config.sampling_parameters.WhichOneof("strategy")
    assert "Be brief." == config.instructions


def test_the_same_turn_id_attaches_to_the_turn(mesh: Mesh):
    turn_id = new_id("turn")
    first = mesh.turnwire("ask", "hello", "--turn-id", turn_id)
    again = mesh.turnwire("ask", "hello", "--turn-id", turn_id)
    assert first.out == again.out == "Hi there, friend.\n"
    assert 1 == mesh.ask("get_session", mesh.ask("get_turn", turn_id).session_id).last_ordinal
    other = mesh.turnwire("ask", "something else", "--turn-id", turn_id)
    assert 1 == other.code
    assert "was used before" in other.err


def test_a_session_goes_on(mesh: Mesh):
    session = _session(mesh)
    for _ in range(2):
        assert 0 == mesh.turnwire("ask", "hello", "--session", session).code
    assert 2 == mesh.ask("get_session", session).last_ordinal


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--agent", "nobody"), "There is no agent 'nobody'. There are: "),
        (("--session", "sess_nowhere"), "There is no session 'sess_nowhere'."),
        (("--model", "gpt"), "There is no model 'gpt'. There are: scripted."),
    ],
    ids=["agent", "session", "model"],
)
def test_what_there_is_not_is_told_with_what_there_is(mesh: Mesh, arguments: tuple[str, ...], told: str):
    ended = mesh.turnwire("ask", "hello", *arguments)
    assert (1, "") == (ended.code, ended.out)
    assert told in ended.err


def test_a_mesh_that_is_not_there_is_told_with_the_way_to_one(tmp_path: Path):
    ended = turnwire("ask", "hello", cwd=tmp_path, env={"TURNWIRE_AGENT_ADDRESS": "127.0.0.1:9"})
    assert (1, "") == (ended.code, ended.out)
    assert "looked for at 127.0.0.1:9, as TURNWIRE_AGENT_ADDRESS says" in ended.err


def test_a_stale_run_file_is_told(tmp_path: Path):
    run_file = tmp_path / ".turnwire" / "run" / "mesh.json"
    run_file.parent.mkdir(parents=True)
    content = {"pid": 2**22 + 1, "started": "1", "addresses": {"agent": "127.0.0.1:9"}, "data_dir": str(tmp_path)}
    run_file.write_text(json.dumps(content), encoding="utf-8")
    ended = turnwire("ask", "hello", cwd=tmp_path)
    assert 1 == ended.code
    assert f"The mesh of {tmp_path} is no longer there: `turnwire up` starts it again" in ended.err


def test_a_defect_is_told_in_words_and_ends_with_70(mesh: Mesh):
    # A module that breaks, found before ours: the least that any defect of ours would do.
    broken = mesh.folder / "broken"
    broken.mkdir()
    (broken / "sqlite3.py").write_text("raise ZeroDivisionError('oh')", encoding="utf-8")
    ended = mesh.turnwire("doctor", env={"PYTHONPATH": f"{broken}:{_source()}"})
    assert 70 == ended.code
    assert "Turnwire has a defect: ZeroDivisionError: oh. TURNWIRE_DEBUG=1 shows its trace" in ended.err


def _source() -> str:
    from tests.cli.command import SOURCE

    return str(SOURCE)


def _session(mesh: Mesh) -> str:
    session = mesh.turnwire("sessions", "create")
    assert 0 == session.code, session
    return session.out.strip()


def test_cancelled_turns_are_no_answers(mesh: Mesh):
    import subprocess

    from tests.cli.command import command, environment

    turn_id = new_id("turn")
    process = subprocess.Popen(
        command("ask", "endless", "--turn-id", turn_id, "--json"),
        stdout=subprocess.PIPE,
        cwd=mesh.folder,
        env=environment(mesh.env),
    )
    assert process.stdout is not None
    while b"step_delta" not in process.stdout.readline():
        pass
    assert 0 == mesh.turnwire("turns", "cancel", turn_id, "--reason", "enough").code
    rest = process.communicate(timeout=30)[0]
    assert 130 == process.returncode
    assert b"turn_cancelled" in rest.splitlines()[-1]
    turn = mesh.ask("get_turn", turn_id)
    assert (turn_pb2.TURN_STATUS_CANCELLED, "enough") == (turn.status, turn.cancel_reason)
