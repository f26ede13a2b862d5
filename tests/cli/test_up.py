"""`turnwire up`, `down` and what is between: the processes of a mesh on moved ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.cli.command import Done, command, environment, listener, turnwire
from turnwire.cli.services import SERVICES
from turnwire.runtime.settings import PORTS
from turnwire.testing.mesh import free_port_offset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mesh, pytest.mark.faults]

_SETTINGS = """
providers:
  inference:
    - {provider_id: scripted, provider_type: "inline::scripted", config: {rules: [{contains: hello, text: "Hi."}]}}
"""
_WARM_SECONDS = 5.0
_PATIENCE = 40.0


class Place:
    """A folder with a settings file, where a mesh may run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.below = folder / "deep" / "below"
        self.offset = free_port_offset([*SERVICES, "gateway"])
        self.below.mkdir(parents=True)
        (folder / "turnwire.yaml").write_text(_SETTINGS, encoding="utf-8")

    def turnwire(self, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Done:
        return turnwire(*arguments, cwd=cwd or self.folder, env=env)

    def up(self, *arguments: str) -> Done:
        return self.turnwire("up", "--detach", "--port-offset", str(self.offset), *arguments)

    def mesh(self) -> dict[str, Any]:
        return json.loads((self.folder / ".turnwire" / "run" / "mesh.json").read_text(encoding="utf-8"))

    def foreground(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command("up", "--port-offset", str(self.offset)),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.turnwire("down")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place where a mesh runs."""
    place = Place(tmp_path_factory.mktemp("up"))
    started = place.up()
    assert 0 == started.code, started
    (place.folder / "greeting").write_text(started.out, encoding="utf-8")
    yield place
    place.turnwire("down")


@pytest.mark.everyday
def test_up_says_where_the_services_are_and_what_to_try(up: Place):
    told = (up.folder / "greeting").read_text(encoding="utf-8")
    assert "The mesh is up (" in told
    for service in SERVICES:
        assert f"127.0.0.1:{PORTS[service] + up.offset}" in told
    for tried in ('  turnwire ask "What is gRPC?"\n', "  turnwire chat\n", "  turnwire status\n"):
        assert tried in told


@pytest.mark.everyday
def test_a_mesh_is_found_from_below_its_folder(up: Place):
    answered = up.turnwire("ask", "hello", cwd=up.below)
    assert (0, "Hi.\n") == (answered.code, answered.out)
    shown = up.turnwire("status", "--json", cwd=up.below).json()
    assert dict.fromkeys([*SERVICES, "gateway"], "up") == {each["service"]: each["state"] for each in shown["services"]}
    assert {"pid": up.mesh()["pid"], "data_dir": str(up.folder / ".turnwire"), "running": True} == shown["mesh"]
    people = up.turnwire("status", cwd=up.below)
    assert "scripted ready" in people.out
    assert len(SERVICES) + 2 == len(people.out.splitlines())


@pytest.mark.everyday
def test_a_gateway_that_is_away_is_shown(up: Place):
    pid = up.mesh()["children"]["gateway"]
    os.kill(pid, signal.SIGSTOP)
    try:
        shown = up.turnwire("status", "--json")
    finally:
        os.kill(pid, signal.SIGCONT)
    states = {each["service"]: each["state"] for each in json.loads(shown.out)["services"]}
    assert (1, "down", "up") == (shown.code, states["gateway"], states["agent"])


@pytest.mark.everyday
def test_a_mesh_is_found_by_its_data_directory(up: Place, tmp_path: Path):
    away = up.turnwire("ask", "hello", cwd=tmp_path)
    assert 1 == away.code
    assert "No mesh was started in this folder or above it" in away.err
    found = up.turnwire("ask", "hello", cwd=tmp_path, env={"TURNWIRE_DATA_DIR": str(up.folder / ".turnwire")})
    assert "Hi.\n" == found.out


@pytest.mark.everyday
@pytest.mark.parametrize("detach", [True, False])
def test_a_second_mesh_in_one_place_is_refused(up: Place, detach: bool):
    pid = up.mesh()["pid"]
    second = up.turnwire("up", *(["--detach"] if detach else []), "--port-offset", str(up.offset))
    assert 1 == second.code
    assert f"a mesh runs already (process {pid}" in second.err
    assert pid == up.mesh()["pid"]


@pytest.mark.everyday
def test_doctor_finds_the_mesh_and_tells_the_time_to_the_first_token(up: Place):
    report = up.turnwire("doctor", "--json", cwd=up.below).json()
    states = {each["check"]: each["state"] for each in report["findings"]}
    assert "problem" not in states.values(), report
    assert {"services": "ok", "key": "ok", "providers": "ok", "first token": "ok"}.items() <= states.items()
    assert 0 < report["first_token_seconds"] < 8
    assert report["prompt_tokens"] > 0
    # It leaves no session behind.
    sessions = up.turnwire("sessions", "list", "--json").json().get("sessions", [])
    assert all(int(session.get("last_ordinal", "0")) <= 1 for session in sessions)
    assert "Say hi." not in up.turnwire("turns", "list").out


@pytest.mark.everyday
def test_a_service_that_is_killed_is_started_again(up: Place):
    before = up.mesh()["children"]["agent"]
    os.kill(before, signal.SIGKILL)
    _until(lambda: up.mesh()["children"]["agent"] != before)
    _until(lambda: up.turnwire("ask", "hello").out == "Hi.\n")
    log = (up.folder / ".turnwire" / "logs" / "up.log").read_text(encoding="utf-8")
    assert "agent ended with -9; it starts again in 0.4 s" in log


@pytest.mark.everyday
def test_down_ends_all_processes_from_below_the_folder(up: Place):
    mesh = up.mesh()
    assert (0, "stopped\n", "") == up.turnwire("down", cwd=up.below)
    assert all(_gone(pid) for pid in [mesh["pid"], *mesh["children"].values()])
    assert not (up.folder / ".turnwire" / "run" / "mesh.json").exists()
    assert 0 == up.turnwire("down").code
    assert "no mesh was started" in up.turnwire("status").err


def test_a_warm_mesh_is_up_within_five_seconds_and_ctrl_c_ends_it(place: Place):
    begun = time.monotonic()
    process = place.foreground()
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"The mesh is up (")
    taken = time.monotonic() - begun
    mesh = place.mesh()
    # Ctrl-C reaches all of them, as in a terminal.
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=_PATIENCE)
    assert 0 == process.returncode
    assert all(_gone(pid) for pid in mesh["children"].values())
    assert not (place.folder / ".turnwire" / "run" / "mesh.json").exists()
    # The bar is for a machine with nothing else to do.
    others = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert taken < _WARM_SECONDS * others


@pytest.mark.everyday
def test_the_services_end_when_their_supervisor_is_killed(place: Place):
    assert 0 == place.up().code
    mesh = place.mesh()
    os.kill(mesh["pid"], signal.SIGKILL)
    _until(lambda: all(_gone(pid) for pid in mesh["children"].values()))
    stale = place.turnwire("status")
    assert 1 == stale.code
    assert "its process is gone" in stale.err
    assert f"no mesh runs with its data in {place.folder / '.turnwire'}\n" == place.turnwire("down").out


@pytest.mark.everyday
def test_a_port_that_is_taken_is_told_with_who_has_it(place: Place):
    port = PORTS["memory"] + place.offset
    with listener(port) as pid:
        refused = place.up()
    assert 1 == refused.code
    assert f"port {port} of memory is taken by process {pid} ({sys.executable}" in refused.err
    assert "--port-offset" in refused.err


@pytest.mark.everyday
def test_a_wrong_settings_file_starts_nothing(place: Place):
    (place.folder / "turnwire.yaml").write_text(_SETTINGS.replace("contains", "contians"), encoding="utf-8")
    refused = place.up()
    assert (1, "") == (refused.code, refused.out)
    assert "turnwire.yaml, line 4" in refused.err
    assert "contians" in refused.err
    assert not (place.folder / ".turnwire").exists()


def test_a_service_that_cannot_start_is_told_and_the_others_end(place: Place):
    from turnwire.agent.store.schema import SCHEMA

    _newer_store(place.folder / ".turnwire" / "agent.sqlite3", SCHEMA.version + 1)
    refused = place.up()
    assert 1 == refused.code
    assert "agent ended at its start:" in refused.err
    assert f"has schema version {SCHEMA.version + 1}" in refused.err
    with socket.socket() as probe:  # nobody is left on the ports
        assert probe.connect_ex(("127.0.0.1", PORTS["inference"] + place.offset)) != 0


def _newer_store(path: Path, version: int) -> None:
    import sqlite3

    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE schema_version (version BIGINT NOT NULL)")
        connection.execute("INSERT INTO schema_version (version) VALUES (?)", (version,))
    connection.close()


@pytest.mark.parametrize("arguments", [(), ("--all-in-one",)])
def test_a_machine_that_isolates_nothing_runs_all_but_code(place: Place, arguments: tuple[str, ...]):
    settings = f"{_SETTINGS}sandbox: {{engine: bubblewrap, bubblewrap: /bin/false}}\n"
    (place.folder / "turnwire.yaml").write_text(settings, encoding="utf-8")
    started = place.up(*arguments)
    assert 0 == started.code, started
    assert "But code_interpreter is off. Model-written code cannot be isolated on this machine" in started.err
    assert "install bubblewrap" in started.err

    assert "Hi.\n" == place.turnwire("ask", "hello").out
    shown = place.turnwire("status", "--json").json()["services"]
    (off,) = [each for each in shown if each["state"] != "up"]
    assert ("sandbox_runner", "off") == (off["service"], off["state"])
    assert "install bubblewrap" in off["detail"]
    report = place.turnwire("doctor", "--json").json()
    (note,) = [each for each in report["findings"] if each["check"] == "sandbox_runner"]
    assert ("note", True) == (note["state"], note["todo"].startswith("install bubblewrap"))
    assert "sandbox_runner" not in place.mesh()["children"]


def test_weights_that_are_missing_are_told_at_the_start(place: Place, tmp_path: Path):
    (place.folder / "turnwire.yaml").write_text(
        'providers: {inference: [{provider_id: local, provider_type: "inline::llama-cpp"}]}', encoding="utf-8"
    )
    empty = {"TURNWIRE_WEIGHTS_DIR": str(tmp_path / "no weights")}
    arguments = ("up", "--detach", "--all-in-one", "--port-offset", str(place.offset))
    started = place.turnwire(*arguments, env=empty)
    assert 0 == started.code
    assert "run `turnwire models pull qwen2.5-coder-0.5b`" in started.err
    asked = place.turnwire("ask", "hello")
    assert 1 == asked.code
    assert "turnwire models pull qwen2.5-coder-0.5b" in asked.err
