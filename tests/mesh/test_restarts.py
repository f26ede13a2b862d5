"""Services that end and come back, in the middle of turns."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.calling import dump
from tests.mesh.asking import check_log, folded, session_of, until, until_up, weather_tool
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import NotFound, TurnCancelledEarly, Unavailable, from_rpc_error
from turnwire.fold import TERMINAL_STATUSES
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.mesh

RULES = [
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "after_tool": False},
    {"after_tool": True, "tokens": 30, "tokens_per_second": 200},
    {"contains": "long", "tokens": 60, "tokens_per_second": 60},
]
WHOLE = "".join(f"w{number} " for number in range(1, 61))


async def test_a_service_that_is_away_is_named_and_found_again(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        for service in ("inference", "agent"):
            await mesh.stop(service)
            before = dump(mesh.folder)
            request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("hello")])
            begun = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable) as raised:
                await _streamed(client, request)
            assert asyncio.get_running_loop().time() - begun < 10
            assert service == raised.value.metadata["service"]
            assert before == dump(mesh.folder)
            await mesh.start(service)
            await until_up(client, service)

            await until(lambda request=request: _answered(client, request))


async def _answered(client: Any, request: agent_service_pb2.RunTurnRequest) -> bool:
    events = await _streamed(client, request)
    return folded(events).status == turn_pb2.TURN_STATUS_COMPLETED


async def _streamed(client: Any, request: agent_service_pb2.RunTurnRequest) -> list[Any]:
    import grpc

    try:
        return [event async for event in client.agent_stub.RunTurn(request, timeout=10)]
    except grpc.RpcError as error:
        raise from_rpc_error(error, service="agent") from error


async def test_creating_an_agent_without_inference_writes_nothing():
    async with running_mesh() as mesh, mesh.client() as client:
        await mesh.stop("inference")
        before = dump(mesh.folder)
        with pytest.raises(Unavailable) as raised:
            await client.create_agent(agent_pb2.AgentConfig(model="scripted"))

        assert "inference" == raised.value.metadata["service"]
        assert before == dump(mesh.folder)


@pytest.mark.faults
@pytest.mark.everyday
@pytest.mark.parametrize("victim", ["agent", "inference"])
async def test_a_turn_outlives_the_death_of_a_process(victim: str):
    async with running_mesh("processes", rules=RULES) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client), "a long story")
        seen: list[Any] = []
        killed = False
        async with stream:
            async for event in stream:
                seen.append(event)
                if not killed and stream.text.endswith("w10 "):
                    killed = True
                    await mesh.kill(victim)
                    await mesh.start(victim)

        assert WHOLE == stream.text
        turn = await client.get_turn(stream.turn_id)
        assert turn == stream.turn
        assert turn.steps[0].attempt >= 2
        kinds = [event.WhichOneof("payload") for event in seen]
        assert ("turn_recovered" in kinds) == (victim == "agent")
        assert "step_restarted" in kinds
        positions = [event.sequence for event in seen]
        assert sorted(set(positions)) == positions
        check_log([event async for event in client.watch_turn(stream.turn_id)])


@pytest.mark.faults
async def test_a_turn_that_dies_at_the_same_place_again_and_again_is_failed():
    async with running_mesh("processes", rules=[{"contains": "hang", "text": "x", "hang": True}]) as mesh:
        async with mesh.client() as client:
            stream = client.run_turn(await session_of(client), "please hang")
            async with stream:
                await anext(aiter(stream))
            for _ in range(3):
                await mesh.kill("agent")
                await mesh.start("agent")
                await until_up(client, "agent")

            async def ended() -> bool:
                return (await client.get_turn(stream.turn_id)).status in TERMINAL_STATUSES

            await until(ended)
            turn = await client.get_turn(stream.turn_id)
            assert error_pb2.ERROR_REASON_RECOVERY_EXHAUSTED == turn.failure.reason


@pytest.mark.faults
async def test_sigterm_lets_turns_finish_and_streams_resume():
    async with running_mesh("processes", rules=RULES, agent={"drain_seconds": 0}) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client), "a long story")
        stopped = False
        async with stream:
            async for _ in stream:
                if not stopped and stream.text.endswith("w10 "):
                    stopped = True
                    await mesh.stop("agent")
                    await mesh.start("agent")

        assert WHOLE == stream.text
        assert stream.turn == await client.get_turn(stream.turn_id)


FAULTS = 24
SEED = int(os.environ.get("TURNWIRE_FAULTS_SEED", "1"))
PATIENCE_SECONDS = 1.5
"""A step outlives the absence of a service for two and a half seconds at least, of which connecting may take one."""


@pytest.mark.faults
@pytest.mark.everyday
@pytest.mark.timeout(3600)
async def test_seeded_faults_leave_every_turn_whole():
    """Each fault: a turn with a tool pause, hit at a random place; whatever happens, the log is sound."""
    chance = random.Random(SEED)
    async with running_mesh("processes", rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        for number in range(FAULTS):
            kind = chance.choice(["kill agent", "kill inference", "pause agent", "drop", "cancel"])
            await _one_fault(mesh, client, session, kind, chance.uniform(0, 0.25), f"fault-{SEED}-{number}")


async def _one_fault(mesh: Any, client: Any, session: str, kind: str, delay: float, turn_id: str) -> None:
    async def get_weather(city: str) -> str:
        return f"sunny in {city}"

    stream = client.run_turn(session, "the weather?", turn_id=turn_id, tools={"get_weather": get_weather})
    running = asyncio.create_task(stream.result())
    await asyncio.sleep(delay)  # the place of the fault: a time is what it is chosen by
    begun = asyncio.get_running_loop().time()
    match kind.split():
        case ["kill", service]:
            await mesh.kill(service)
            await mesh.start(service)
        case ["pause", service]:
            await mesh.signal(service, signal.SIGSTOP)
            await asyncio.sleep(0.2)
            await mesh.signal(service, signal.SIGCONT)
        case ["drop"]:
            stream.close()
        case _:
            await client.cancel_turn(turn_id, allow_missing=True)
    away = asyncio.get_running_loop().time() - begun
    try:
        await running
    except TurnCancelledEarly:
        if kind != "cancel":
            raise
        return
    await until_up(client)

    if kind == "drop" and not await _was_accepted(client, turn_id):
        return  # the stream was dropped while its call was on its way

    async def ended() -> bool:
        turn = await client.get_turn(turn_id)
        if turn.status == turn_pb2.TURN_STATUS_AWAITING_INPUT:
            call = turn.awaited_input.requests[0].call
            await client.submit_turn_input(turn_id, [message_pb2.ToolResult(call_id=call.call_id, content="sunny")])
        return turn.status in TERMINAL_STATUSES

    await until(ended)
    events = [event async for event in client.watch_turn(turn_id)]
    check_log(events)
    turn = await client.get_turn(turn_id)
    assert turn == folded(events)
    if kind == "kill inference" and away > PATIENCE_SECONDS and turn.status == turn_pb2.TURN_STATUS_FAILED:
        # The machine is busy: it took longer to start it again than a step waits.
        assert error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE == turn.failure.reason
        assert "inference" == turn.failure.metadata["service"]
        return
    allowed = {turn_pb2.TURN_STATUS_COMPLETED} | ({turn_pb2.TURN_STATUS_CANCELLED} if kind == "cancel" else set())
    assert turn.status in allowed, f"{kind} after {delay:.3f} s: {turn}"


async def _was_accepted(client: Any, turn_id: str) -> bool:
    try:
        await client.get_turn(turn_id)
    except NotFound:
        return False
    return True
