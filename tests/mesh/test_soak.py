"""Streams that are dropped or cancelled at random points, by the thousand: nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import psutil
import pytest

from tests.mesh.asking import session_of, until
from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.testing.mesh import running_mesh

pytestmark = pytest.mark.mesh

RULES = [{"contains": "story", "tokens": 40, "tokens_per_second": 400}]
_AT_ONCE = 40
_MEMORY = 60 * 1024 * 1024
"""What a process may have grown by, in bytes: allocators keep some of what they were given."""


async def test_500_dropped_streams_leave_nothing():
    await _soak(500)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_10000_dropped_streams_leave_nothing():
    await _soak(10_000)


async def _soak(count: int) -> None:
    chance = random.Random(7)
    async with running_mesh("processes", rules=RULES, telemetry={"log_level": "warning"}) as mesh:
        async with mesh.client() as client:
            sessions = [await session_of(client) for _ in range(_AT_ONCE)]
            await _turns(client, sessions, 100, chance)
            await until(lambda: _quiet(client))
            before = {service: _measured(mesh.pid(service)) for service in ("agent", "inference")}
            await _turns(client, sessions, count, chance)
            await until(lambda: _quiet(client))
            for service, (files, threads, memory) in before.items():
                await until(lambda service=service, files=files: _files_back(mesh.pid(service), files))
                files_now, threads_now, memory_now = _measured(mesh.pid(service))
                assert files_now <= files + 4, f"{service}: {files} files before, {files_now} after"
                assert threads_now <= threads + 4, f"{service}: {threads} threads before, {threads_now} after"
                grown = memory_now - memory
                assert grown < _MEMORY, f"{service} grew by {grown / 1e6:.0f} MB over {count} streams"
            answer = await client.run_turn(sessions[0], "hello").result()
            assert turn_pb2.TURN_STATUS_COMPLETED == answer.status
    gc.collect()


async def _turns(client: Any, sessions: list[str], count: int, chance: random.Random) -> None:
    queue = list(range(count))

    async def worker(session: str) -> None:
        while queue:
            queue.pop()
            await _one(client, session, chance)

    await asyncio.gather(*(worker(session) for session in sessions))


async def _one(client: Any, session: str, chance: random.Random) -> None:
    """A stream that is left after a random number of events: dropped, cancelled, or both."""
    request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("a story")])
    call = client.agent_stub.RunTurn(request, timeout=60)
    left = chance.randint(0, 30)
    turn_id = ""
    try:
        async for event in call:
            turn_id = event.turn_id
            left -= 1
            if left <= 0:
                break
    finally:
        call.cancel()
    # The session is free again when its turn has ended, by itself or by this.
    await client.cancel_turn(turn_id)


async def _quiet(client: Any) -> bool:
    """True when no turn runs and no upstream stream is open."""
    running = await client.list_turns(statuses=[turn_pb2.TURN_STATUS_RUNNING])
    providers = await client.list_providers("inference")
    return not running.turns and "0 open streams" == providers[0].detail


async def _files_back(pid: int, files: int) -> bool:
    return _measured(pid)[0] <= files + 4


def _measured(pid: int) -> tuple[int, int, int]:
    process = psutil.Process(pid)
    return process.num_fds(), process.num_threads(), process.memory_info().rss
