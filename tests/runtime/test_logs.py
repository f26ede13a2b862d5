"""What a process logs: one event a line, as JSON, with ids and without secrets."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.asking import session_of
from tests.runtime.serving import ROOT
from turnwire.agent.v1 import agent_service_pb2
from turnwire.client.client import user_message
from turnwire.errors import NotFound, TurnwireError, Unauthenticated
from turnwire.runtime.hosting import MESH_SECRET
from turnwire.runtime.telemetry import Lines
from turnwire.testing.mesh import running_mesh

TRACE = "0af7651916cd43dd8448eb211c80319c"
KEY = "the-key-of-ann-long-enough"
WRONG = "a-key-that-nobody-has-at-all"
MODEL_KEY = "the-key-of-the-model-server"
SECRET = "the-secret-of-this-mesh-long"
SAID = "what the user said, and only the model may read"
ACCESS = {"api_keys": [{"name": "ann", "key": KEY, "roles": ["admin"]}], "mesh_secret": SECRET}


def _events(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


@pytest.mark.mesh
async def test_a_log_is_one_event_a_line_with_ids_and_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(MESH_SECRET, raising=False)
    gpu = {
        "provider_id": "gpu",
        "provider_type": "remote::openai",
        "config": {"base_url": "http://127.0.0.1:9/v1", "api_key": MODEL_KEY},
    }
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {}}
    async with running_mesh(
        "processes",
        access=ACCESS,
        telemetry={"log_level": "debug"},
        providers={"inference": [scripted, gpu]},
    ) as mesh:
        async with mesh.client(api_key=KEY) as client:
            session = await session_of(client)
            request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message(SAID)])
            metadata = (
                ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),
                ("turnwire-request-id", "the-request"),
                ("authorization", f"Bearer {KEY}"),
            )
            events = [event async for event in client.agent_stub.RunTurn(request, timeout=30, metadata=metadata)]
            assert "turn_completed" == events[-1].WhichOneof("payload")
            with pytest.raises(NotFound):
                await client.get_turn("turn_that_is_not_there")
            with pytest.raises(TurnwireError):
                await client.run_turn(session, "x", overrides=_on("gpu/none")).result()
        async with mesh.client(api_key=WRONG) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.get_turn("turn_1")
        for service in ("agent", "inference"):
            await mesh.stop(service)
        logs = {service: mesh.log(service) for service in ("agent", "inference")}

    for service, log in logs.items():
        for event in _events(log):
            assert {"event", "level", "timestamp", "service"} <= set(event), event
            assert service == event["service"]
        for secret in (KEY, WRONG, MODEL_KEY, SECRET, SAID, "Bearer", "mesh1."):
            assert secret not in log, f"{service} logs {secret!r}"
    served = _finished(logs["agent"], "turnwire.agent.v1.AgentService/RunTurn")
    assert ("the-request", TRACE, "OK") == (served["request_id"], served["trace_id"], served["code"])
    answered = _finished(logs["inference"], "turnwire.inference.v1.InferenceService/ChatCompletion")
    assert TRACE == answered["trace_id"]
    missing = _finished(logs["agent"], "turnwire.agent.v1.AgentService/GetTurn")
    assert ("NOT_FOUND", "ERROR_REASON_NOT_FOUND") == (missing["code"], missing["reason"])
    names = [event["event"] for event in _events(logs["agent"])]
    assert ["serving", "draining"] == [name for name in names if name in {"serving", "draining"}]


def _on(model: str) -> Any:
    from turnwire.agent.v1 import agent_pb2

    return agent_pb2.AgentConfig(model=model)


def _finished(log: str, method: str) -> dict[str, Any]:
    found = [event for event in _events(log) if ("rpc_finished", method) == (event["event"], event.get("method"))]
    assert found, f"no call of {method} in {log}"
    return found[0]


_SCRIPT = """
import logging, structlog, warnings
from turnwire.runtime.settings import TelemetrySettings
from turnwire.runtime.telemetry import configure_logs

configure_logs(TelemetrySettings(log_format={format!r}, log_level={level!r}), "agent")
log = structlog.get_logger("mine")

def broken(password):
    raise ValueError("first line\\nsecond line")

log.debug("small")
log.info("told", text="ü\\nand more", number=5)
logging.getLogger("a.library").warning("of a library: %s", 7)
logging.getLogger("a.library").info("its chatter")
try:
    broken(password="hunter2")
except ValueError:
    log.exception("failed")
    logging.getLogger("a.library").exception("it failed")
"""


def _logged(log_format: str, level: str = "info") -> subprocess.CompletedProcess[str]:
    script = _SCRIPT.format(format=log_format, level=level)
    environ = {"PYTHONPATH": str(ROOT / "services"), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ, encoding="utf-8")


def test_events_of_our_own_and_of_libraries_have_one_form():
    ran = _logged("json")
    assert "" == ran.stdout
    events = _events(ran.stderr)
    assert ["told", "of a library: 7", "failed", "it failed"] == [event["event"] for event in events]
    assert {"agent"} == {event["service"] for event in events}
    assert ("ü\nand more", 5) == (events[0]["text"], events[0]["number"])
    assert ["info", "warning", "error", "error"] == [event["level"] for event in events]
    for event in events[2:]:
        assert "ValueError: first line\nsecond line" in event["exception"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(log_format: str):
    told = _logged(log_format).stderr
    assert "ValueError: first line" in told
    assert "hunter2" not in told.replace('broken(password="hunter2")', "").replace('broken(password=\\"hunter2\\")', "")


def test_the_level_is_what_was_set():
    assert "small" in _logged("json", "debug").stderr
    told = _events(_logged("json", "error").stderr)
    assert ["failed", "it failed"] == [event["event"] for event in told]


def test_a_log_on_a_full_disk_stops_nothing():
    script = _SCRIPT.format(format="json", level="info") + "\nprint('went on')"
    environ = {"PYTHONPATH": str(ROOT / "services")}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", script]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False, env=environ)

    assert (0, "went on\n") == (ran.returncode, ran.stdout)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_process_without_standard_error_runs(log_format: str):
    script = _SCRIPT.format(format=log_format, level="info") + "\nprint('went on')"
    command = ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, script]
    environ = {"PYTHONPATH": str(ROOT / "services")}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environ)

    assert (0, "went on\n") == (ran.returncode, ran.stdout)


def test_lines_that_were_lost_are_counted_when_there_is_room_again():
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    lines = Lines(write_end)
    try:
        lines.write("x" * 200_000 + "\n")  # more than fits
        lines.write("lost\n")
        torn = os.read(read_end, 1 << 20)
        lines.write("kept\n")
        lines.write("and kept\n")
        rest = os.read(read_end, 1 << 20).decode()
    finally:
        os.close(read_end)
        os.close(write_end)

    assert torn.strip(b"x") == b""
    begun, told, *kept = rest.splitlines()
    assert "" == begun
    assert {"event": "log_lines_lost", "level": "warning", "count": 2} == json.loads(told)
    assert ["kept", "and kept"] == kept


def _calls(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]


def test_no_service_prints():
    sources = [path for path in (ROOT / "services").rglob("*.py") if "_pb2" not in path.name]
    assert len(sources) > 50
    assert [] == [str(path) for path in sources if {"print", "pprint"} & set(_calls(path))]
