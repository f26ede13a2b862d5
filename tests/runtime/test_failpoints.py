"""A failpoint: how it holds a process, for whom, and when it does not."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.runtime import failpoints
from turnwire.runtime.failpoints import VARIABLE, Boundary, Failpoint, armed, declare_methods, declared, of_method
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@dataclass
class Hit:
    """A process that stands at a failpoint."""

    failpoint: str
    number: int
    writer: asyncio.StreamWriter

    def release(self) -> None:
        """Lets it go on."""
        self.writer.write(json.dumps({"id": self.number}).encode() + b"\n")


class Driver:
    """Gives the test the hits it waits for, and lets processes pass at all others."""

    def __init__(self) -> None:
        self.holds: set[str] | None = None
        """Where processes are held; None: everywhere."""
        self.passed: list[str] = []
        self.processes: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.hits: asyncio.Queue[Hit] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads what one process tells."""
        self._writers.append(writer)
        while line := await reader.readline():
            message = json.loads(line)
            if "pid" in message:
                self.processes.put_nowait(message)
                continue
            hit = Hit(message["failpoint"], message["id"], writer)
            if self.holds is None or hit.failpoint in self.holds:
                self.hits.put_nowait(hit)
            else:
                self.passed.append(hit.failpoint)
                hit.release()

    def leave(self) -> None:
        """Ends all connections."""
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def driving(path: Path) -> AsyncGenerator[Driver]:
    """Gives a driver at a socket."""
    driver = Driver()
    server = await asyncio.start_unix_server(driver.take, path)
    try:
        yield driver
    finally:
        driver.leave()
        server.close()


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch) -> Failpoint:
    """A failpoint that nobody else has."""
    monkeypatch.setattr(failpoints, "_names", set())
    return Failpoint("test.point")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the driver listens."""
    return tmp_path / "failpoints"


@pytest.fixture
def environ(path: Path) -> dict[str, str]:
    """The environment of a process with a driver."""
    return {VARIABLE: str(path)}


async def test_a_process_is_held_until_the_driver_lets_it_go(point: Failpoint, path: Path, environ: dict[str, str]):
    async with driving(path) as driver, armed(["agent"], environ):
        waiting = asyncio.create_task(point.reached())
        hit = await driver.hits.get()
        assert "test.point" == hit.failpoint
        await _passing(point, driver)  # whatever was on its way has come
        assert not waiting.done()
        hit.release()
        await waiting


async def test_the_driver_is_told_who_connects(path: Path, environ: dict[str, str]):
    told: list[dict[str, Any]] = []
    async with driving(path) as driver:
        for services in (["agent"], ["agent", "memory"]):
            async with armed(services, environ):
                told.append(await driver.processes.get())
    assert [{"process": "agent", "pid": os.getpid()}, {"process": "all", "pid": os.getpid()}] == told


async def test_two_wait_at_once_and_each_goes_on_by_its_own_answer(
    point: Failpoint, path: Path, environ: dict[str, str]
):
    other = Failpoint("test.other")
    async with driving(path) as driver, armed(["agent"], environ):
        waiting = [asyncio.create_task(each.reached()) for each in (point, other)]
        hits = [await driver.hits.get() for _ in waiting]
        hits[1].release()
        await waiting[1]
        assert not waiting[0].done()
        hits[0].release()
        await waiting[0]
    assert ["test.point", "test.other"] == [hit.failpoint for hit in hits]


async def test_who_no_longer_waits_is_not_missed(point: Failpoint, path: Path, environ: dict[str, str]):
    async with driving(path) as driver, armed(["agent"], environ):
        waiting = asyncio.create_task(point.reached())
        hit = await driver.hits.get()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        hit.release()
        await _passing(point, driver)
        assert Failpoint.armed
    assert waiting.cancelled()


async def test_everything_goes_on_when_the_driver_ends(point: Failpoint, path: Path, environ: dict[str, str]):
    with capture_logs() as logs:
        async with driving(path) as driver, armed(["agent"], environ):
            waiting = [asyncio.create_task(point.reached()) for _ in range(2)]
            for _ in waiting:
                await driver.hits.get()
            driver.leave()
            await asyncio.gather(*waiting)
            await point.reached()
            assert not Failpoint.armed
    assert ["failpoints_armed", "failpoints_driver_gone"] == [each["event"] for each in logs]


@pytest.mark.parametrize("line", [b"no JSON\n", b"{}\n", b"[]\n", b"7\n"])
async def test_a_driver_that_talks_nonsense_counts_as_gone(
    point: Failpoint, path: Path, environ: dict[str, str], line: bytes
):
    async with driving(path) as driver, armed(["agent"], environ):
        waiting = asyncio.create_task(point.reached())
        (await driver.hits.get()).writer.write(line)
        await waiting
        assert not Failpoint.armed


async def test_a_process_starts_without_the_driver_that_it_was_told_of(point: Failpoint, environ: dict[str, str]):
    with capture_logs() as logs:
        async with armed(["agent"], environ):
            assert not Failpoint.armed
            await point.reached()
    assert ["failpoints_armed", "failpoints_driver_gone"] == [each["event"] for each in logs]
    assert {"warning"} == {each["log_level"] for each in logs}


async def test_without_the_variable_there_is_neither_a_driver_nor_a_word(point: Failpoint, path: Path):
    with capture_logs() as logs:
        async with driving(path) as driver, armed(["agent"], {}):
            assert not Failpoint.armed
            await point.reached()
    assert driver.processes.empty()
    assert [] == logs


async def test_what_is_held_goes_on_when_the_process_ends(point: Failpoint, path: Path, environ: dict[str, str]):
    async with driving(path) as driver:
        async with armed(["agent"], environ):
            waiting = asyncio.create_task(point.reached())
            await driver.hits.get()
        await waiting
        assert not Failpoint.armed


def test_a_name_is_declared_once(point: Failpoint):
    with pytest.raises(ValueError, match=r"test\.point"):
        Failpoint(point.name)
    assert ("test.point",) == declared()


@pytest.mark.usefixtures("point")
async def test_nothing_is_after_what_has_failed(path: Path, environ: dict[str, str]):
    boundary = Boundary("test.commit")
    async with driving(path) as driver, armed(["agent"], environ):
        driver.holds = set()
        async with boundary:
            driver.passed.append("done")
        with pytest.raises(KeyError):
            async with boundary:
                raise KeyError
    assert ["test.commit.before", "done", "test.commit.after", "test.commit.before"] == driver.passed


def test_only_streams_have_messages_to_stand_between(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failpoints, "_names", set())
    monkeypatch.setattr(failpoints, "_methods", {})
    service = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"]
    declare_methods(service, "RunTurn", "CancelTurn")
    names = ["CancelTurn.ended", "CancelTurn.received"]
    names += ["RunTurn.between", "RunTurn.ended", "RunTurn.first", "RunTurn.received"]
    assert tuple(f"agent.{name}" for name in names) == declared()
    assert of_method("turnwire.agent.v1.AgentService/GetTurn") is None
    with pytest.raises(KeyError):
        declare_methods(service, "RunTurns")


@pytest.mark.mesh
async def test_a_running_service_is_held_where_the_driver_wants_it(path: Path, environ: dict[str, str]):
    rules = [{"contains": "hello", "pieces": ["Hi ", "there", "."]}]
    async with driving(path) as driver:
        driver.holds = {"agent.turn_completed.before"}
        async with running_mesh("processes", rules=rules, environ=environ) as mesh, mesh.client() as client:
            session = await client.create_session("assistant")
            stream = client.run_turn(session.session_id, "hello")
            running = asyncio.create_task(stream.result())
            hit = await driver.hits.get()
            (listed,) = (await client.list_turns(session_id=session.session_id)).turns
            assert turn_pb2.TURN_STATUS_RUNNING == listed.status
            driver.holds = set()
            hit.release()
            assert "Hi there." == (await running).output.parts[0].text
            assert "failpoints_armed" in mesh.log("agent")
            assert [mesh.pid("inference"), mesh.pid("agent")] == [(await driver.processes.get())["pid"] for _ in "12"]
    order = ["agent.lease_taken.before", "agent.RunTurn.received", "agent.turn_started.before"]
    order += ["agent.turn_started.after", "agent.accepted", "agent.model_asked", "inference.ChatCompletion.received"]
    order += ["agent.first_token", "agent.between_deltas", "agent.model_ended", "agent.turn_completed.after"]
    order += ["agent.RunTurn.ended", "agent.lease_ended.after"]
    reached = [name for name in dict.fromkeys(driver.passed) if name in order]
    assert sorted(order) == sorted(reached)
    assert [name for name in order if name.startswith("agent.")] == [
        name for name in reached if name.startswith("agent.")
    ]


async def _passing(point: Failpoint, driver: Driver) -> None:
    """Reaches a failpoint and goes on."""
    passing = asyncio.create_task(point.reached())
    (await driver.hits.get()).release()
    await passing
