"""Two executors on one database: a call runs at one of them, and either can be asked about it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.fakes.images_server import fake_images
from tests.fakes.search_servers import fake_search
from tests.tool_executor.calling import DISPATCHED, SUCCEEDED, UNKNOWN, Executor, calling, drawing, searching, until
from turnwire.common.v1 import error_pb2
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.testing.postgres import Postgres

pytestmark = [pytest.mark.mesh, pytest.mark.faults]
QUERY = {"query": "turnwire"}
PROMPT = {"prompt": "red"}


@dataclass
class _Replica:
    mesh: RunningMesh
    executor: Executor


@asynccontextmanager
async def _replicas(
    url: str, *providers: dict[str, Any], lease_seconds: float = 2.0
) -> AsyncGenerator[tuple[_Replica, _Replica]]:
    async with AsyncExitStack() as stack:
        replicas: list[_Replica] = []
        for _ in range(2):
            mesh = await stack.enter_async_context(
                running_mesh(
                    "processes",
                    services=("tool_executor",),
                    providers={"tool_executor": list(providers)},
                    store={"url": url},
                    agent={"lease_seconds": lease_seconds, "lease_renew_seconds": 0.5, "drain_seconds": 0.5},
                )
            )
            replicas.append(_Replica(mesh, await stack.enter_async_context(calling(mesh))))
        yield replicas[0], replicas[1]


@pytest.mark.everyday
async def test_a_call_that_runs_at_one_is_followed_at_the_other(postgres: str):
    async with fake_images() as fake, _replicas(postgres, drawing(fake)) as (one, other):
        fake.script = ["hang"]
        first = asyncio.create_task(one.executor.run("photogen", PROMPT))
        await fake.asked.wait()
        second = asyncio.create_task(other.executor.run("photogen", PROMPT, owner_epoch=2))
        await until(lambda: _has_epoch(one.executor, 2))
        # A third that starts finds it running, and lets it.
        await other.mesh.kill("tool_executor")
        await asyncio.gather(second, return_exceptions=True)
        await other.mesh.start("tool_executor")
        again = asyncio.create_task(_asked(other.executor))
        fake.gate.set()
        results = [(await first).result, await again]

    assert results[0] == results[1]
    assert not results[0].HasField("failure")
    assert 1 == len(fake.requests)


async def test_a_call_that_runs_at_one_is_stopped_from_the_other_within_a_second(postgres: str):
    async with fake_images() as fake, _replicas(postgres, drawing(fake)) as (one, other):
        fake.script = ["hang"]
        running = asyncio.create_task(one.executor.run("photogen", PROMPT))
        await fake.asked.wait()
        async with asyncio.timeout(1.0):
            stopped = await other.executor.cancel()
        ran = await running

    # The picture was asked for, and may be made.
    assert UNKNOWN == stopped.state
    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == ran.reason


@pytest.mark.everyday
async def test_what_a_killed_one_had_sent_is_unknown_or_runs_again_at_the_other(postgres: str):
    async with (
        fake_images() as images,
        fake_search() as search,
        _replicas(postgres, drawing(images), searching(search)) as (one, other),
    ):
        images.script, search.script = ["hang"], ["hang"]
        lost = [
            asyncio.create_task(one.executor.run("photogen", PROMPT, "call_1")),
            asyncio.create_task(one.executor.run("web_search", QUERY, "call_2")),
        ]
        await asyncio.gather(images.asked.wait(), search.asked.wait())
        await one.mesh.kill("tool_executor")
        await asyncio.gather(*lost, return_exceptions=True)
        picture, found = await asyncio.gather(
            other.executor.run("photogen", PROMPT, "call_1", owner_epoch=2),
            other.executor.run("web_search", QUERY, "call_2", owner_epoch=2),
        )

    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == picture.reason
    assert not found.result.HasField("failure")
    assert (1, 2) == (len(images.requests), len(search.requests))


async def test_one_that_stood_still_beyond_its_lease_writes_no_outcome_over_the_others(postgres: str):
    async with fake_images() as fake, _replicas(postgres, drawing(fake)) as (one, other):
        fake.script = ["hang"]
        running = asyncio.create_task(one.executor.run("photogen", PROMPT))
        await fake.asked.wait()
        await one.mesh.signal("tool_executor", signal.SIGSTOP)
        ran = await other.executor.run("photogen", PROMPT, owner_epoch=2)
        fake.gate.set()
        await one.mesh.signal("tool_executor", signal.SIGCONT)
        late = await running
        noted = await one.executor.execution()

    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == ran.reason == late.reason
    assert (UNKNOWN, ran.result) == (noted.state, noted.result)


async def test_one_that_is_told_to_end_leaves_what_it_ran_at_once(postgres: str):
    # Nobody could wait for the end of this lease.
    async with fake_search() as fake, _replicas(postgres, searching(fake), lease_seconds=3600.0) as (one, other):
        fake.script = ["hang"]
        running = asyncio.create_task(one.executor.run("web_search", QUERY))
        await fake.asked.wait()
        await one.mesh.stop("tool_executor")
        await asyncio.gather(running, return_exceptions=True)
        ran = await other.executor.run("web_search", QUERY, owner_epoch=2)
        noted = await other.executor.execution()

    assert not ran.result.HasField("failure")
    assert (SUCCEEDED, 2) == (noted.state, noted.owner_epoch)


async def test_a_lease_is_renewed_after_a_renewal_that_failed_for_whatever_reason(
    postgres_server: Postgres, postgres: str
):
    database = urlsplit(postgres).path.lstrip("/")

    def psql(sql: str) -> str:
        return postgres_server.psql(f"SET search_path = turnwire_tool_executor; {sql}", database)

    async def said_no() -> bool:
        # The server logs a statement that failed.
        return "INSERT INTO executors" in postgres_server.log()[logged:]

    async def renewed() -> bool:
        return int(psql("SELECT max(expire_time) FROM executors")) > before

    logged = len(postgres_server.log())
    lease = {"lease_seconds": 60.0, "lease_renew_seconds": 0.1}
    async with running_mesh(
        services=("tool_executor",), providers={"tool_executor": []}, store={"url": postgres}, agent=lease
    ):
        psql("ALTER TABLE executors RENAME TO taken_away")
        await until(said_no)
        psql("ALTER TABLE taken_away RENAME TO executors")
        before = int(psql("SELECT max(expire_time) FROM executors"))
        await until(renewed)


async def _asked(executor: Executor) -> Any:
    """Asks a replica that has just started, until it is reached."""
    found: list[Any] = []

    async def answers() -> bool:
        found.append((await executor.run("photogen", PROMPT, owner_epoch=2)).result)
        return True

    await until(answers)
    return found[0]


async def _has_epoch(executor: Executor, epoch: int) -> bool:
    noted = await executor.execution()
    return (noted.state, noted.owner_epoch) == (DISPATCHED, epoch)
