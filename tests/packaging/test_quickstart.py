"""docs/quickstart.md, done word for word: its files are written, its commands are run, on the embedded model."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tools.dev.layout import ROOT
from turnwire.cli.services import SERVICES
from turnwire.runtime.settings import PORTS
from turnwire.testing.mesh import free_port_offset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.wheel, pytest.mark.model, pytest.mark.timeout(300)]

_BLOCK = re.compile(r"(?:`(?P<name>[a-z]+\.[a-z]+)`:\n\n)?```(?P<language>[a-z]+)\n(?P<text>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Done:
    """A block of commands that was run."""

    commands: str
    code: int
    output: str
    errors: str


def blocks() -> Iterator[re.Match[str]]:
    return _BLOCK.finditer((ROOT / "docs" / "quickstart.md").read_text())


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Done]]:
    """The whole page in one folder, as one person does it, on ports and with data of its own."""
    folder: Path = tmp_path_factory.mktemp("quickstart")
    for name in ("dev", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    offset = free_port_offset(SERVICES)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TURNWIRE_")} | {
        "TURNWIRE_DATA_DIR": str(folder / ".turnwire"),
        "TURNWIRE_LISTEN_PORT_OFFSET": str(offset),
    }
    if weights := os.environ.get("TURNWIRE_WEIGHTS_DIR"):
        environment["TURNWIRE_WEIGHTS_DIR"] = weights
    done: list[Done] = []
    try:
        for block in blocks():
            text = block["text"].replace(f":{PORTS['agent']}", f":{PORTS['agent'] + offset}")
            if block["name"]:
                (folder / block["name"]).write_text(text)
            else:
                assert block["language"] == "sh", f"a block of {block['language']} without a name:\n{text}"
                done.append(_run(text, folder, environment))
        yield done
    finally:
        _run("./dev down", folder, environment)


def _run(commands: str, folder: Path, environment: dict[str, str]) -> Done:
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Done(commands, ran.returncode, ran.stdout, ran.stderr)


def block_with(session: list[Done], words: str) -> Done:
    """Returns the one block that has these words."""
    (found,) = [done for done in session if words in done.commands]
    return found


def test_every_command_succeeds(session: list[Done]):
    assert [] == [done for done in session if done.code != 0]
    assert len(session) >= 8


def test_the_mesh_comes_up_and_goes_down(session: list[Done]):
    assert "The mesh is up" in session[0].output
    assert "./dev down\n" == session[-1].commands
    assert "stopped" == session[-1].output.strip()


def test_it_answers_and_is_well(session: list[Done]):
    talk = block_with(session, "turnwire status")
    answer, _, table = talk.output.partition("SERVICE ")
    assert answer.strip()
    # The services, and the gateway before them.
    assert len(SERVICES) + 1 == table.count(" up ")


def test_the_turn_is_kept(session: list[Done]):
    assert "TURN_STATUS_COMPLETED" in block_with(session, "turns list --json").output


def test_the_first_agent_answers_as_it_was_made(session: list[Done]):
    output = block_with(session, "poet.yaml").output
    assert "You are a poet" in output


def test_the_first_tool_is_called_and_the_turn_goes_on(session: list[Done]):
    output = block_with(session, "weather.py").output
    kinds = re.findall(r"^\d+ (\w+)$", output, re.MULTILINE)
    assert kinds.index("turn_awaiting_input") < kinds.index("turn_input_received")
    assert "turn_completed" == kinds[-1]


def test_a_client_without_stubs_finds_its_way(session: list[Done]):
    listed = block_with(session, "--list-methods").output
    assert "turnwire.agent.v1.AgentService/RunTurn" in listed.split()
    events = block_with(session, "/RunTurn").output
    assert '"turnStarted"' in events
    assert '"turnCompleted"' in events
