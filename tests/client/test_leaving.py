"""Leaving a stream, in every way there is: the call ends, the turn goes on, nobody is left waiting."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.client.agents import Abort, Hang, completed, progress, started, told
from tests.mesh.asking import session_of, weather_tool
from turnwire.agent.v1 import turn_pb2
from turnwire.errors import Cancelled
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.agent.v1 import event_pb2
    from turnwire.client import Client, TurnStream

RULES = [
    {"contains": "hang", "text": "half an answer", "hang": True},
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "after_tool": False},
    {"after_tool": True, "text": "It is sunny."},
]


async def _running(client: Client, turn_id: str) -> bool:
    return (await client.get_turn(turn_id)).status == turn_pb2.TURN_STATUS_RUNNING


async def _ends_by_closing(stream: TurnStream) -> None:
    """Reads in a task; another closes the stream while the reader waits."""
    reading = asyncio.create_task(stream.result())
    await _read_some(stream)
    stream.close()
    await reading


async def _ends_by_cancelling(stream: TurnStream) -> None:
    reading = asyncio.create_task(stream.result())
    await _read_some(stream)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def _ends_by_timeout(stream: TurnStream) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await stream.result()


async def _ends_by_break(stream: TurnStream) -> None:
    async for _ in stream:
        break


async def _ends_by_aclose(stream: TurnStream) -> None:
    events: AsyncGenerator[event_pb2.StepEvent, None] = aiter(stream)
    await anext(events)
    await events.aclose()


async def _ends_by_error(stream: TurnStream) -> None:
    async def read() -> None:
        async with stream:
            async for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read()


async def _read_some(stream: TurnStream) -> None:
    while stream.last_sequence < 3:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "leave",
    [_ends_by_closing, _ends_by_cancelling, _ends_by_timeout, _ends_by_break, _ends_by_aclose, _ends_by_error],
    ids=lambda leave: leave.__name__.strip("_"),
)
async def test_leaving_ends_the_stream(leave: Any):
    async with told([started(), progress(2), progress(3), Hang()]) as (agent, client):
        await leave(client.run_turn("sess_1", "hello"))
        while agent.open:
            await asyncio.sleep(0.005)
        assert (1, 0) == (len(agent.run), len(agent.watched))


async def test_leaving_a_stream_leaves_the_turn_running():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        async with client.run_turn(await session_of(client), "please hang") as stream:
            async for _ in stream:
                break
        assert await _running(client, stream.turn_id)


async def test_a_stream_that_was_left_is_taken_up_by_the_next_iteration():
    async with told([started(), progress(2), Hang()], [progress(2), progress(3), Hang()], [completed(4)]) as (
        _,
        client,
    ):
        stream = client.run_turn("sess_1", "hello")
        seen: list[int] = []
        # Nothing closes these iterations but the collector, some time after the next has begun.
        for _ in range(2):
            async for event in stream:
                seen.append(event.sequence)
                if len(seen) in (1, 3):
                    break
        async for event in stream:
            seen.append(event.sequence)
        assert [1, 2, 3, 4] == seen
        assert turn_pb2.TURN_STATUS_COMPLETED == stream.turn.status


async def test_two_readers_at_once_are_refused_and_the_first_goes_on():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client), "please hang")
        reading = asyncio.create_task(stream.result())
        await _read_some(stream)
        with pytest.raises(RuntimeError, match="watch the turn again"):
            await stream.result()
        await client.cancel_turn(stream.turn_id)
        assert turn_pb2.TURN_STATUS_CANCELLED == (await reading).status


async def test_closing_ends_the_wait_for_a_service_that_is_away():
    async with told([started(), Abort(grpc.StatusCode.UNAVAILABLE)], [Abort(grpc.StatusCode.UNAVAILABLE)]) as (
        _,
        client,
    ):
        stream = client.run_turn("sess_1", "hello", resume_timeout=3600)
        reading = asyncio.create_task(stream.result())
        while stream.reconnects < 2:
            await asyncio.sleep(0.005)
        stream.close()
        async with asyncio.timeout(0.2):
            await reading


async def test_closing_cancels_the_functions_that_run_for_the_turn():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def get_weather(city: str) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return city

    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        stream = client.run_turn(session, "the weather?", tools={"get_weather": get_weather})
        reading = asyncio.create_task(stream.result())
        await begun.wait()
        stream.close()
        await reading
        assert ended.is_set()
        assert turn_pb2.TURN_STATUS_AWAITING_INPUT == (await client.get_turn(stream.turn_id)).status


async def test_a_reader_that_swallowed_a_cancellation_before_can_still_be_closed():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client), "please hang")

        async def read() -> str:
            # As old code does: the task goes on, and stays marked as being cancelled.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await stream.result()
            return "ended well"

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        reading.cancel()
        await _read_some(stream)
        stream.close()
        assert "ended well" == await reading


async def test_a_client_that_is_closed_under_a_reader_says_so():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as beside:
        async with mesh.client() as client:
            stream = client.run_turn(await session_of(client), "please hang")
            reading = asyncio.create_task(stream.result())
            await _read_some(stream)
        with pytest.raises(Cancelled, match="client was closed"):
            await reading
        assert 0 == stream.reconnects
        assert await _running(beside, stream.turn_id)
        with pytest.raises(Cancelled, match="client was closed"):
            await stream.result()


async def test_a_closed_stream_gives_nothing_more():
    async with running_mesh() as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client), "hello")
        stream.close()
        assert [] == [event async for event in stream]
        assert turn_pb2.TURN_STATUS_UNSPECIFIED == stream.turn.status
