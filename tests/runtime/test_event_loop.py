"""Nothing blocks the event loop of a serving process while turns run."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.mesh.asking import session_of, weather_tool
from tests.runtime.serving import Answering, hosted, inference, stub_of
from turnwire.agent.v1 import turn_pb2
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BOUND = 0.25
"""No callback holds the loop's thread on a processor, or asleep, for so long. The work of a call takes some
milliseconds; a blocking read of a file, a query or a `time.sleep` on the loop shows at once."""
RULES = [
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "after_tool": False},
    {"after_tool": True, "tokens": 60},
    {"contains": "story", "tokens": 400, "tokens_per_second": 800},
]


class Slowest:
    """The callback that held the loop for longest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.name = ""


@asynccontextmanager
async def watched() -> AsyncGenerator[Slowest]:
    """Times each callback of the running loop, as asyncio's debug mode does.

    The time on a processor counts, and time asleep; what the thread stood in line for a processor does not, or a busy
    machine would fail the test.
    """
    slowest = Slowest()
    run: Any = asyncio.Handle._run
    statistics = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def in_line() -> float:
        return int(os.pread(statistics, 100, 0).split()[1]) / 1e9

    def timed(handle: Any) -> None:
        begun = time.perf_counter() - in_line()
        run(handle)
        if asyncio.Handle._run is not timed:
            return  # the watch ended within this callback
        seconds = time.perf_counter() - in_line() - begun
        if seconds > slowest.seconds:
            slowest.seconds, slowest.name = seconds, repr(handle)

    asyncio.Handle._run = timed  # pyright: ignore[reportAttributeAccessIssue] - private, and the only place that sees all
    try:
        yield slowest
    finally:
        asyncio.Handle._run = run  # pyright: ignore[reportAttributeAccessIssue] - as above
        os.close(statistics)


@pytest.mark.mesh
async def test_no_callback_of_a_mesh_blocks_its_loop_while_turns_run():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        sessions = [await session_of(client, tools=[weather_tool()]) for _ in range(12)]

        async def get_weather(city: str) -> str:
            return f"sunny in {city}"

        async def turns(session: str) -> list[turn_pb2.Turn]:
            stories = [await client.run_turn(session, "a story").result() for _ in range(2)]
            asked = client.run_turn(session, "the weather", tools={"get_weather": get_weather})
            return [*stories, await asked.result()]

        async with watched() as slowest:
            done = await asyncio.gather(*(turns(session) for session in sessions))
            await client.list_turns()
    assert {turn_pb2.TURN_STATUS_COMPLETED} == {turn.status for each in done for turn in each}
    assert slowest.seconds < BOUND, f"{slowest.name} held the loop for {slowest.seconds:.3f} s"
    assert slowest.seconds > 0


@pytest.mark.parametrize("how", ["asleep", "busy"])
async def test_the_watch_sees_a_callback_that_blocks(how: str):
    class Blocking(Answering):
        async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
            if how == "asleep":
                time.sleep(BOUND * 1.5)
            else:
                begun = time.thread_time()
                while time.thread_time() - begun < BOUND * 1.5:
                    pass
            return messages.CountTokensResponse()

    async with hosted({"inference": inference(Blocking())}) as service, stub_of(service.address()) as stub:
        async with watched() as slowest:
            await stub.CountTokens(messages.CountTokensRequest())
    assert slowest.seconds > BOUND
