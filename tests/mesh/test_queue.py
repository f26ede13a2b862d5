"""Turns of a session that is busy: refused, queued or interrupting, in the order of their acceptance."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.mesh.asking import check_log, folded, session_of, until, weather_tool
from tests.mesh.replicas import running_replicas
from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.common.v1 import message_pb2
from turnwire.errors import NotFound, SessionBusy, SessionQueueFull, TurnwireError
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from pathlib import Path

    from turnwire.client import Client

pytestmark = pytest.mark.mesh

QUEUE = agent_service_pb2.BUSY_POLICY_QUEUE
INTERRUPT = agent_service_pb2.BUSY_POLICY_INTERRUPT
RULES = [
    {"contains": "hang", "text": "x", "hang": True},
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "after_tool": False},
]


async def _running(
    client: Client, session: str, text: str = "please hang", **how: Any
) -> tuple[str, asyncio.Task[Any]]:
    """Begins a turn, and returns its id and its reading, once its first event is there."""
    stream = client.run_turn(session, text, **how)
    reading = asyncio.create_task(stream.result())
    while not stream.last_sequence and not reading.done():
        await asyncio.sleep(0.01)
    if reading.done():
        await reading
    return stream.turn_id, reading


async def _status(client: Client, turn_id: str) -> turn_pb2.TurnStatus.ValueType:
    return (await client.get_turn(turn_id)).status


async def test_a_queued_turn_waits_and_runs_when_the_one_before_it_ends():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        first, reading = await _running(client, session)
        queued = [await _running(client, session, f"number {number}", busy_policy=QUEUE) for number in (1, 2)]
        states = [await client.get_turn(turn_id) for turn_id, _ in queued]
        assert [turn_pb2.TURN_STATUS_QUEUED] * 2 == [turn.status for turn in states]
        assert [(session, 2), (session, 3)] == [(turn.session_id, turn.ordinal) for turn in states]
        await client.cancel_turn(first)
        turns = [await each for _, each in queued]

        assert turn_pb2.TURN_STATUS_CANCELLED == (await reading).status
        assert ["number 1", "number 2"] == [turn.output.parts[0].text for turn in turns]
        assert turns[0].end_time.ToMicroseconds() <= turns[1].steps[0].start_time.ToMicroseconds()
        for turn in turns:
            events = [event async for event in client.watch_turn(turn.turn_id)]
            check_log(events)
            assert ["turn_queued", "turn_started"] == [event.WhichOneof("payload") for event in events[:2]]
            assert turn == folded(events) == await client.get_turn(turn.turn_id)
        listed = await client.list_turns(session_id=session)
        assert [1, 2, 3] == [turn.ordinal for turn in listed.turns]


async def test_a_queued_turn_reads_what_was_said_before_it():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        alone = await client.run_turn(await session_of(client, tools=[weather_tool()]), "and now?").result()
        turn = await client.run_turn(session, "the weather?").result()
        _, reading = await _running(client, session, "and now?", busy_policy=QUEUE)
        call = turn.awaited_input.requests[0].call
        result = message_pb2.ToolResult(call_id=call.call_id, content=" ".join(["sunny"] * 50))
        await client.submit_turn_input(turn.turn_id, [result])

        # The prompt holds what the turn before it came to after this one was accepted.
        assert alone.usage.prompt_tokens + 50 < (await reading).usage.prompt_tokens


async def test_a_busy_session_takes_sixteen_further_turns_and_none_unasked():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        first, reading = await _running(client, session)
        queued = [await _running(client, session, str(number), busy_policy=QUEUE) for number in range(16)]
        with pytest.raises(SessionQueueFull):
            await client.run_turn(session, "one more", busy_policy=QUEUE).result()
        with pytest.raises(SessionBusy) as busy:
            await client.run_turn(session, "one more").result()
        assert first == busy.value.metadata["turn_id"]
        await client.cancel_turn(first)
        await reading

        assert [str(number) for number in range(16)] == [(await each).output.parts[0].text for _, each in queued]


async def test_an_interrupting_turn_cancels_the_one_that_runs_and_follows_it():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        first, reading = await _running(client, session)
        turn = await client.run_turn(session, "rather this", busy_policy=INTERRUPT).result()

        assert "rather this" == turn.output.parts[0].text
        cancelled = await reading
        assert turn_pb2.TURN_STATUS_CANCELLED == cancelled.status
        assert f"turn {turn.turn_id} interrupts it" == cancelled.cancel_reason
        assert (first, 2) == (cancelled.turn_id, turn.ordinal)


async def test_an_interrupting_turn_ends_a_pause():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        paused = await client.run_turn(session, "the weather?").result()
        turn = await client.run_turn(session, "never mind", busy_policy=INTERRUPT).result()

        assert "never mind" == turn.output.parts[0].text
        assert turn_pb2.TURN_STATUS_CANCELLED == await _status(client, paused.turn_id)


async def test_a_queued_turn_can_be_cancelled_and_deleted_and_the_next_one_still_runs():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        first, reading = await _running(client, session)
        second, gone = await _running(client, session, "a", busy_policy=QUEUE)
        third, last = await _running(client, session, "b", busy_policy=QUEUE)
        answer = await client.cancel_turn(second, reason="not needed")
        assert turn_pb2.TURN_STATUS_CANCELLED == answer.status
        assert "not needed" == (await gone).cancel_reason
        assert turn_pb2.TURN_STATUS_RUNNING == await _status(client, first)
        assert turn_pb2.TURN_STATUS_QUEUED == await _status(client, third)
        await client.agent_stub.DeleteTurn(agent_service_pb2.DeleteTurnRequest(turn_id=second))
        await client.cancel_turn(first)
        await reading

        assert "b" == (await last).output.parts[0].text
        with pytest.raises(NotFound):
            await client.get_turn(second)


async def test_a_session_with_queued_turns_is_deleted_only_by_force():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        _, reading = await _running(client, session)
        _, queued = await _running(client, session, "a", busy_policy=QUEUE)
        with pytest.raises(SessionBusy):
            await client.delete_session(session)
        await client.delete_session(session, force=True)
        for ended in await asyncio.gather(reading, queued, return_exceptions=True):
            # A stream that comes late finds the turn gone.
            assert isinstance(ended, TurnwireError | turn_pb2.Turn), ended
            assert isinstance(ended, TurnwireError) or turn_pb2.TURN_STATUS_CANCELLED == ended.status
        with pytest.raises(NotFound):
            await client.get_session(session)


async def test_a_queue_outlives_the_death_of_its_process():
    async with running_mesh("processes", rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        first, reading = await _running(client, session)
        _, queued = await _running(client, session, "after the restart", busy_policy=QUEUE)
        await mesh.kill("agent")
        await mesh.start("agent")

        async def cancelled() -> bool:
            return (await client.cancel_turn(first)).status == turn_pb2.TURN_STATUS_CANCELLED

        await until(cancelled)
        await reading
        turn = await queued
        assert "after the restart" == turn.output.parts[0].text
        assert 0 == turn.recoveries


async def test_a_turn_queued_on_one_replica_runs_after_the_one_of_another(tmp_path: Path, postgres: str):
    async with (
        running_replicas(tmp_path, postgres, count=2, rules=RULES) as replicas,
        replicas.client(0) as client,
        replicas.client(1) as other,
    ):
        session = await session_of(client)
        first, reading = await _running(client, session)
        _, queued = await _running(other, session, "a", busy_policy=QUEUE)
        turn = await other.run_turn(session, "b", busy_policy=INTERRUPT).result()

        assert turn_pb2.TURN_STATUS_CANCELLED == (await reading).status
        assert first == (await reading).turn_id
        assert ["a", "b"] == [each.output.parts[0].text for each in (await queued, turn)]
        assert [2, 3] == [(await queued).ordinal, turn.ordinal]
