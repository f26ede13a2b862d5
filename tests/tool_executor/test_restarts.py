"""The process killed at each state of an execution: what was sent and may not be repeated is not, all else runs."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.fakes.images_server import fake_images
from tests.fakes.search_servers import fake_search
from tests.tool_executor.calling import (
    CANCELLED,
    CODE,
    DISPATCHED,
    PREPARED,
    SECRET,
    SUCCEEDED,
    UNKNOWN,
    Executor,
    calling,
    drawing,
    searching,
    until,
)
from turnwire.common.v1 import error_pb2
from turnwire.errors import TurnwireError
from turnwire.testing.mesh import RunningMesh, running_mesh
from turnwire.tool_executor.v1 import tool_executor_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [pytest.mark.mesh, pytest.mark.faults]
QUERY = {"query": "turnwire"}


@asynccontextmanager
async def _mesh(*providers: dict[str, Any], runner: bool = False) -> AsyncGenerator[tuple[RunningMesh, Executor]]:
    services = ("sandbox_runner", "tool_executor") if runner else ("tool_executor",)
    async with (
        running_mesh(
            "processes",
            services=services,
            providers={"tool_executor": list(providers)},
            access=SECRET,
            sandbox={"preload": []},
        ) as mesh,
        calling(mesh) as executor,
    ):
        yield mesh, executor


async def _killed(mesh: RunningMesh, running: asyncio.Task[Any]) -> None:
    await mesh.kill("tool_executor")
    with pytest.raises(TurnwireError):
        await running


async def _stopped(mesh: RunningMesh, executor: Executor) -> None:
    """Keeps the runner from answering: a sandbox cannot be opened then, and the code of a call is not sent."""
    # Over a connection that stands: a new one would be given up at once.
    await executor.run("code_interpreter", {"code": "0"}, "call_0")
    await mesh.signal("sandbox_runner", signal.SIGSTOP)


@pytest.mark.everyday
async def test_a_search_that_was_sent_runs_again():
    async with fake_search() as fake, _mesh(searching(fake)) as (mesh, executor):
        fake.script = ["hang"]
        running = asyncio.create_task(executor.run("web_search", QUERY))
        await fake.asked.wait()
        assert DISPATCHED == (await executor.execution()).state
        await _killed(mesh, running)
        await mesh.start("tool_executor")
        await until(lambda: _in_state(executor, PREPARED))
        ran = await executor.run("web_search", QUERY, owner_epoch=2)

    assert [PREPARED, DISPATCHED] == ran.states
    assert "Zweite" in ran.result.content
    assert 2 == len(fake.requests)


async def test_a_picture_that_was_asked_for_is_never_asked_for_again():
    async with fake_images() as fake, _mesh(drawing(fake)) as (mesh, executor):
        fake.script = ["hang"]
        running = asyncio.create_task(executor.run("photogen", {"prompt": "red"}))
        await fake.asked.wait()
        await _killed(mesh, running)
        await mesh.start("tool_executor")
        await until(lambda: _in_state(executor, UNKNOWN))
        ran = await executor.run("photogen", {"prompt": "red"}, owner_epoch=2)
        stopped = await executor.cancel(epoch=2)

    assert ([UNKNOWN], error_pb2.ERROR_REASON_OUTCOME_UNKNOWN) == (ran.states, ran.reason)
    assert {"tool": "photogen", "call_id": "call_1"} == dict(ran.result.failure.metadata)
    assert UNKNOWN == stopped.state
    assert 1 == len(fake.requests)


@pytest.mark.everyday
async def test_an_outcome_outlives_its_process():
    async with fake_images() as fake, _mesh(drawing(fake)) as (mesh, executor):
        first = await executor.run("photogen", {"prompt": "red"})
        await mesh.kill("tool_executor")
        await mesh.start("tool_executor")
        await until(lambda: _in_state(executor, SUCCEEDED))
        second = await executor.run("photogen", {"prompt": "red"}, owner_epoch=2)
        picture = await executor.download(second.result.attachments[0].artifact_id)

    assert first.result == second.result
    assert picture.startswith(b"\x89PNG")
    assert 1 == len(fake.requests)


async def test_code_that_was_only_prepared_runs_once_when_it_is_asked_for_again():
    async with _mesh(CODE, runner=True) as (mesh, executor):
        await _stopped(mesh, executor)
        running = asyncio.create_task(executor.run("code_interpreter", {"code": "print('ran')"}))
        await until(lambda: _in_state(executor, PREPARED))
        await _killed(mesh, running)
        await mesh.signal("sandbox_runner", signal.SIGCONT)
        await mesh.start("tool_executor")
        await until(lambda: _in_state(executor, PREPARED))
        ran = await executor.run("code_interpreter", {"code": "print('ran')"}, owner_epoch=2)

    assert ("ran", False) == (ran.result.content, ran.result.HasField("failure"))


@pytest.mark.everyday
async def test_code_that_was_sent_is_never_run_again():
    code = "print('begun', flush=True)\nwhile True: pass"
    async with _mesh(CODE, runner=True) as (mesh, executor):
        seen = asyncio.Event()

        async def reading() -> None:
            async for response in executor.stream("code_interpreter", {"code": code}, "call_1"):
                if response.HasField("output"):
                    seen.set()

        running = asyncio.create_task(reading())
        await seen.wait()
        await mesh.kill("tool_executor")
        await asyncio.gather(running, return_exceptions=True)
        await mesh.start("tool_executor")
        await until(lambda: _in_state(executor, UNKNOWN))
        ran = await executor.run("code_interpreter", {"code": code}, owner_epoch=2)
        # What ran has ended with its caller: the sandbox takes the next code at once.
        after = await executor.run("code_interpreter", {"code": "6 * 7"}, "call_2", owner_epoch=2)

    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == ran.reason
    assert after.result.content.startswith("42")


async def test_a_runner_that_dies_in_the_middle_leaves_an_unknown_outcome_and_the_next_code_runs():
    code = "print('begun', flush=True)\nwhile True: pass"
    async with _mesh(CODE, runner=True) as (mesh, executor):
        seen = asyncio.Event()
        reasons: list[int] = []
        numbers = itertools.count()

        async def reading() -> None:
            async for response in executor.stream("code_interpreter", {"code": code}, "call_1"):
                if response.HasField("output"):
                    seen.set()
                if response.HasField("result"):
                    reasons.append(response.result.failure.reason)
                    assert "begun" in response.result.content

        running = asyncio.create_task(reading())
        await seen.wait()
        await mesh.kill("sandbox_runner")
        await running
        limits = tool_executor_service_pb2.ExecutionLimits(connect=Duration(seconds=2))
        refused = await executor.run("code_interpreter", {"code": "1"}, "call_2", limits=limits)
        await mesh.start("sandbox_runner")

        async def runs() -> bool:
            # A call that has failed stays so: another try is another call.
            ran = await executor.run("code_interpreter", {"code": "6 * 7"}, f"again_{next(numbers)}")
            return "42" in ran.result.content

        await until(runs)

    assert [error_pb2.ERROR_REASON_OUTCOME_UNKNOWN] == reasons
    assert error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE == refused.reason
    assert refused.result.failure.retryable


async def test_a_runner_that_does_not_answer_is_waited_for_as_long_as_connecting_may_take():
    async with _mesh(CODE, runner=True) as (mesh, executor):
        await _stopped(mesh, executor)
        limits = tool_executor_service_pb2.ExecutionLimits(connect=Duration(nanos=300_000_000))
        ran = await executor.run("code_interpreter", {"code": "1"}, limits=limits)
        noted = await executor.execution()
        await mesh.signal("sandbox_runner", signal.SIGCONT)

    assert (error_pb2.ERROR_REASON_DEADLINE_EXCEEDED, "connect") == (ran.reason, ran.result.failure.metadata["limit"])
    assert not noted.HasField("dispatch_time")


async def test_code_waits_for_a_runner_that_is_started_again_since_nothing_was_sent():
    async with _mesh(CODE, runner=True) as (mesh, executor):
        await executor.run("code_interpreter", {"code": "x = 1"}, "call_0")
        await mesh.kill("sandbox_runner")
        waiting = executor.stream("code_interpreter", {"code": "6 * 7"}, "call_1")
        attempts: list[int] = []
        async for response in waiting:
            if response.progress.unit == "attempts":
                attempts.append(response.progress.done)
                break
        await mesh.start("sandbox_runner")
        ran = await executor.run("code_interpreter", {"code": "6 * 7"}, "call_1")
        waiting.cancel()

    assert [2] == attempts
    assert ran.result.content.startswith("42")
    assert "started anew" in ran.result.content


async def test_a_call_that_a_process_left_prepared_can_be_cancelled():
    async with _mesh(CODE, runner=True) as (mesh, executor):
        await _stopped(mesh, executor)
        running = asyncio.create_task(executor.run("code_interpreter", {"code": "1"}))
        await until(lambda: _in_state(executor, PREPARED))
        await _killed(mesh, running)
        await mesh.signal("sandbox_runner", signal.SIGCONT)
        await mesh.start("tool_executor")
        await until(lambda: _in_state(executor, PREPARED))
        stopped = await executor.cancel(epoch=2)
        ran = await executor.run("code_interpreter", {"code": "1"}, owner_epoch=2)

    assert CANCELLED == stopped.state
    assert error_pb2.ERROR_REASON_CANCELLED == ran.reason


@pytest.mark.everyday
async def test_an_upload_that_is_cut_by_death_leaves_nothing_and_no_row_is_without_its_file():
    async with _mesh() as (mesh, executor):
        kept = [await executor.upload(os.urandom(100_000), name=f"{n}.bin") for n in range(3)]
        uploads = [asyncio.create_task(executor.upload(os.urandom(4_000_000), piece=20_000)) for _ in range(8)]
        blobs = mesh.settings.data_dir / "artifacts"
        while len(list((blobs / "drafts").iterdir())) < 2 and not all(each.done() for each in uploads):
            await asyncio.sleep(0)
        await mesh.kill("tool_executor")
        await asyncio.gather(*uploads, return_exceptions=True)
        # As a death between the file and its row leaves it.
        orphan = blobs / "=default" / "ab" / ("ab" * 32)
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"nobody's")
        await mesh.start("tool_executor")

        async def swept() -> bool:
            files = {path.name for path in blobs.glob("=*/*/*")}
            return files == _hashes(mesh) and not list((blobs / "drafts").iterdir())

        await until(swept)
        for artifact in kept:
            assert artifact.size_bytes == len(await executor.download(artifact.artifact_id))


def _hashes(mesh: RunningMesh) -> set[str]:
    with sqlite3.connect(f"file:{mesh.settings.data_dir}/tool_executor.sqlite3?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT sha256 FROM artifacts").fetchall()
    connection.close()
    return {sha256 for (sha256,) in rows}


async def _in_state(executor: Executor, state: int) -> bool:
    return (await executor.execution()).state == state
