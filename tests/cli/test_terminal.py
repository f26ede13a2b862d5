"""`turnwire ask` and `turnwire chat` in a terminal, with a person who types Ctrl-C."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import Terminal
from turnwire.agent.v1 import turn_pb2
from turnwire.ids import new_id

if TYPE_CHECKING:
    from tests.cli.conftest import Mesh

pytestmark = pytest.mark.mesh

CTRL_C = "\x03"
CTRL_D = "\x04"


def _chat(mesh: Mesh, *arguments: str) -> Terminal:
    return Terminal("chat", *arguments, env=mesh.env, cwd=mesh.folder)


def _started(terminal: Terminal) -> str:
    """Waits for the prompt; returns the session."""
    shown = terminal.until("> ")
    found = re.search(r"sess_\w+", shown)
    assert found is not None, shown
    return found[0]


def test_an_answer_is_shown_while_it_is_written(mesh: Mesh):
    with Terminal("ask", "endless", env=mesh.env, cwd=mesh.folder) as terminal:
        terminal.until("beginning")  # the model writes no more, and the turn has not ended
        assert terminal.process.poll() is None
        terminal.type(CTRL_C)
        assert 130 == terminal.code()


def test_an_answer_is_shown_once(mesh: Mesh):
    with Terminal("ask", "in pieces", env=mesh.env, cwd=mesh.folder) as terminal:
        assert 0 == terminal.code()
    assert 1 == terminal.shown.count("One. Two. Three.\n")
    assert 1 == terminal.shown.count("Three.")


def test_text_that_is_begun_anew_stands_on_a_line_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    from tests.cli.conftest import start_mesh

    for mesh in start_mesh(tmp_path_factory.mktemp("flaky")):
        with Terminal("ask", "flaky", env=mesh.env, cwd=mesh.folder) as terminal:
            assert 0 == terminal.code()
        assert re.search(r"^half an\n.*starting the step again: .*\nA whole answer\.$", terminal.shown, re.MULTILINE)


def test_ctrl_c_cancels_the_turn(mesh: Mesh):
    turn_id = new_id("turn")
    with Terminal("ask", "endless", "--turn-id", turn_id, env=mesh.env, cwd=mesh.folder) as terminal:
        terminal.until("beginning")
        terminal.type(CTRL_C)
        terminal.until("cancelling …")
        assert 130 == terminal.code()
    assert "  cancelled" in terminal.shown
    assert "  the call of the model: stopped\n" in terminal.shown
    turn = mesh.ask("get_turn", turn_id)
    assert (turn_pb2.TURN_STATUS_CANCELLED, "Ctrl-C") == (turn.status, turn.cancel_reason)


def test_a_second_ctrl_c_leaves_at_once(mesh: Mesh):
    turn_id = new_id("turn")
    with Terminal("ask", "endless", "--turn-id", turn_id, env=mesh.env, cwd=mesh.folder) as terminal:
        terminal.until("beginning")
        mesh.run(mesh.running.signal("agent", signal.SIGSTOP))  # nobody will answer the cancellation
        try:
            terminal.type(CTRL_C)
            terminal.until("Ctrl-C again leaves at once")
            terminal.type(CTRL_C)
            terminal.until(f"left; `turnwire turns get {turn_id}`")
            assert 130 == terminal.code()
        finally:
            mesh.run(mesh.running.signal("agent", signal.SIGCONT))
    assert 0 == mesh.turnwire("ask", "hello").code


def test_a_service_that_is_away_is_told_and_waited_for(mesh: Mesh):
    with Terminal("ask", "endless", env=mesh.env, cwd=mesh.folder) as terminal:
        terminal.until("beginning")
        mesh.run(mesh.running.kill("agent"))
        terminal.until("the agent service is away")
        mesh.run(mesh.running.start("agent"))
        terminal.until("another process of the agent service goes on")
        terminal.until("beginning")
        terminal.type(CTRL_C)
        assert 130 == terminal.code()


def test_a_conversation_is_one_session(mesh: Mesh):
    with _chat(mesh) as terminal:
        session = _started(terminal)
        for _ in range(2):
            terminal.type("hello\n")
            terminal.until("Hi there, friend.")
            terminal.until("> ")
        terminal.type(CTRL_D)
        assert 0 == terminal.code()
    assert 2 == mesh.ask("get_session", session).last_ordinal


def test_ctrl_c_cancels_the_turn_and_not_the_conversation(mesh: Mesh):
    with _chat(mesh) as terminal:
        session = _started(terminal)
        terminal.type("endless\n")
        terminal.until("beginning")
        terminal.type(CTRL_C)
        terminal.until("cancelled")
        terminal.until("> ")
        terminal.type("hello\n")
        terminal.until("Hi there, friend.")
        terminal.until("> ")
        terminal.type("/quit\n")
        assert 0 == terminal.code()
    statuses = [turn.status for turn in mesh.ask("list_turns", session_id=session).turns]
    assert [turn_pb2.TURN_STATUS_CANCELLED, turn_pb2.TURN_STATUS_COMPLETED] == statuses


def test_ctrl_c_at_the_prompt_leaves(mesh: Mesh):
    with _chat(mesh) as terminal:
        _started(terminal)
        terminal.type(CTRL_C)
        # Python's readline may miss a signal that comes just as it begins to wait; people press it again.
        while not terminal.ends_within(2):
            terminal.type(CTRL_C)
        assert 130 == terminal.code()


def test_a_turn_that_fails_does_not_end_the_conversation(mesh: Mesh):
    with _chat(mesh) as terminal:
        _started(terminal)
        terminal.type("broken\n")
        terminal.until("The turn failed: ")
        terminal.until("> ")
        terminal.type("hello\n")
        terminal.until("Hi there, friend.")
        terminal.type("/quit\n")
        assert 0 == terminal.code()


def test_new_and_fork_change_the_session(mesh: Mesh):
    with _chat(mesh) as terminal:
        first = _started(terminal)
        terminal.type("hello\n")
        terminal.until("Hi there, friend.")
        terminal.until("> ")
        terminal.type("/fork\n")
        fork = _started(terminal)
        terminal.type("/new\n")
        fresh = _started(terminal)
        terminal.type("/session\n")
        assert fresh == _started(terminal)
        terminal.type("/nonsense\n")
        terminal.until("there is no /nonsense")
        terminal.type("/quit\n")
        assert 0 == terminal.code()
    assert first == mesh.ask("get_session", fork).forked_from.session_id
    assert not mesh.ask("get_session", fresh).HasField("forked_from")


def test_a_conversation_goes_on_in_a_session(mesh: Mesh):
    session = mesh.turnwire("sessions", "create").out.strip()
    with _chat(mesh, "--session", session) as terminal:
        assert session == _started(terminal)
        terminal.type(CTRL_D)
        assert 0 == terminal.code()


def test_a_conversation_that_is_piped_gives_the_answers_only(mesh: Mesh):
    ended = mesh.turnwire("chat", stdin=b"hello\nin pieces\n")
    assert (0, "Hi there, friend.\nOne. Two. Three.\n") == (ended.code, ended.out)


def test_a_person_sees_the_prompt_and_what_is_piped_has_the_answers(mesh: Mesh):
    piped = mesh.folder / "piped"
    with piped.open("wb") as file, Terminal("chat", env=mesh.env, cwd=mesh.folder, piped=file) as terminal:
        _started(terminal)
        terminal.type("hello\n")
        terminal.until("tokens read")
        terminal.until("> ")
        terminal.type(CTRL_D)
        assert 0 == terminal.code()
    assert "Hi there, friend.\n" == piped.read_text(encoding="utf-8")


def test_a_conversation_with_nobody_is_refused(mesh: Mesh):
    ended = mesh.turnwire("chat", "--agent", "nobody")
    assert (1, "") == (ended.code, ended.out)
    assert "There is no agent 'nobody'" in ended.err
