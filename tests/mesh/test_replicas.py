"""Replicas of the agent service on one database: whichever a caller asks, and whichever dies, a turn is one turn."""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.mesh.asking import check_log, folded, session_of, until, weather_tool
from tests.mesh.replicas import LEASE_SECONDS, running_replicas
from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import message_pb2
from turnwire.errors import NotOwner, from_rpc_error
from turnwire.testing.postgres import running_postgres

if TYPE_CHECKING:
    from pathlib import Path

    from turnwire.client import Client

pytestmark = [pytest.mark.mesh, pytest.mark.faults]

RULES = [
    {"after_tool": True, "text": "It is sunny."},
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}]},
    {"contains": "rollout", "tokens": 120, "tokens_per_second": 20},
    {"contains": "long", "tokens": 60, "tokens_per_second": 20},
    {"contains": "hang", "text": "x", "hang": True},
]
WHOLE = "".join(f"w{number} " for number in range(1, 61))


@pytest.mark.everyday
async def test_another_replica_finishes_the_turn_of_one_that_died(tmp_path: Path, postgres: str):
    async with running_replicas(tmp_path, postgres, rules=RULES) as replicas, replicas.client() as client:
        stream = client.run_turn(await session_of(client), "a long story")
        seen: list[Any] = []
        killed = 0.0
        async for event in stream:
            seen.append(event)
            if not killed and stream.text.endswith("w10 "):
                await replicas.agents[await replicas.owner(client, stream.turn_id)].kill("agent")
                killed = asyncio.get_running_loop().time()
        took = asyncio.get_running_loop().time() - killed

        assert WHOLE == stream.text
        assert took < LEASE_SECONDS + 5 + 60 / 20
        assert 1 == stream.turn.recoveries
        positions = [event.sequence for event in seen]
        assert sorted(set(positions)) == positions
        async with replicas.client(*[n for n in range(3) if "agent" in replicas.agents[n]._processes]) as others:
            assert stream.turn == await others.get_turn(stream.turn_id)
            events = [event async for event in others.watch_turn(stream.turn_id)]
        check_log(events)
        assert stream.turn == folded(events)


async def test_an_owner_that_stood_still_past_its_lease_writes_and_shows_nothing_more(tmp_path: Path, postgres: str):
    async with (
        running_replicas(tmp_path, postgres, count=2, rules=RULES) as replicas,
        replicas.client(0, keepalive_seconds=60) as client,
        replicas.client(1) as other,
    ):
        request = agent_service_pb2.RunTurnRequest(
            session_id=await session_of(client), turn_id="still", messages=[user_message("a long story")]
        )
        call = client.agent_stub.RunTurn(request)
        shown: list[Any] = [await call.read() for _ in range(8)]
        await replicas.agents[0].signal("agent", signal.SIGSTOP)

        async def ended() -> bool:
            return (await other.get_turn("still")).status == turn_pb2.TURN_STATUS_COMPLETED

        await until(ended)
        whole = [event async for event in other.watch_turn("still")]
        await replicas.agents[0].signal("agent", signal.SIGCONT)
        # The old owner goes on with its stream: what it shows now is what the new one has written.
        while (event := await call.read()) is not grpc.aio.EOF:
            shown.append(event)
        check_log(whole)
        recovered = next(event for event in whole if event.WhichOneof("payload") == "turn_recovered")
        assert whole[-1] == shown[-1]
        assert whole[whole.index(recovered) :] == shown[shown.index(recovered) :]
        assert folded(whole) == folded(shown)
        assert WHOLE == folded(shown).output.parts[0].text
        # It has lost its lease, and takes nothing of the turn back; then it is a replica like others.
        await until(lambda: _completes(client))
        assert whole == [event async for event in other.watch_turn("still")]


async def _completes(client: Any) -> bool:
    turn = await client.run_turn(await session_of(client), "hello").result()
    return turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def test_two_hundred_calls_with_one_turn_id_are_one_turn(tmp_path: Path, postgres: str):
    async with (
        running_replicas(tmp_path, postgres, rules=RULES) as replicas,
        replicas.client(0) as first,
        replicas.client(1) as second,
        replicas.client(2) as third,
    ):
        session = await session_of(first)
        request = agent_service_pb2.RunTurnRequest(
            session_id=session, turn_id="one", messages=[user_message("a long story")]
        )

        async def run(client: Client) -> turn_pb2.Turn:
            return folded([event async for event in client.agent_stub.RunTurn(request)])

        turns = await asyncio.gather(*(run((first, second, third)[number % 3]) for number in range(200)))

        assert WHOLE == turns[0].output.parts[0].text
        assert all(turns[0] == turn for turn in turns)
        assert 0 == turns[0].recoveries
        listed = await first.list_turns(session_id=session)
        assert ["one"] == [turn.turn_id for turn in listed.turns]


async def test_no_stream_is_lost_or_repeated_while_all_replicas_are_replaced(tmp_path: Path, postgres: str):
    # With a lease that nobody here can wait for: what goes on was let go of.
    async with (
        running_replicas(tmp_path, postgres, rules=RULES, lease_seconds=60.0, sweep_seconds=30.0) as replicas,
        replicas.client() as client,
    ):
        sessions = [await session_of(client) for _ in range(100)]
        streams = [client.run_turn(session, "a story of a rollout") for session in sessions]
        seen: list[list[int]] = [[] for _ in streams]
        recovered: list[bool] = []

        async def read(number: int) -> None:
            async for event in streams[number]:
                seen[number].append(event.sequence)
                if event.WhichOneof("payload") == "turn_recovered":
                    recovered.append(event.turn_recovered.released)

        reading = asyncio.gather(*(read(number) for number in range(len(streams))))
        await until(lambda: _all_began(streams))
        for agent in replicas.agents:
            await agent.stop("agent")
            await agent.start("agent")
        await reading

        whole = "".join(f"w{number} " for number in range(1, 121))
        assert [whole] * len(streams) == [stream.text for stream in streams]
        assert {True} == set(recovered), "a turn was lost instead of let go of"
        for positions, stream in zip(seen, streams, strict=True):
            assert sorted(set(positions)) == positions
            assert stream.turn == await client.get_turn(stream.turn_id)


async def _all_began(streams: list[Any]) -> bool:
    return all(stream.text for stream in streams)


async def test_turns_end_soon_after_the_database_was_away_for_longer_than_a_lease(tmp_path: Path):
    with running_postgres(durable=False) as server, server.database() as url:
        async with running_replicas(tmp_path, url, rules=RULES) as replicas, replicas.client() as client:
            sessions = [await session_of(client) for _ in range(6)]
            streams = [client.run_turn(session, "a long story") for session in sessions]
            reading = asyncio.gather(*(stream.result() for stream in streams))
            await until(lambda: _all_began(streams))
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(2 * LEASE_SECONDS)  # longer than all leases
            await asyncio.to_thread(server.start)
            begun = asyncio.get_running_loop().time()
            turns = await reading

            assert asyncio.get_running_loop().time() - begun < LEASE_SECONDS + 5 + 60 / 20
            assert [WHOLE] * 6 == [turn.output.parts[0].text for turn in turns]
            for turn in turns:
                events = [event async for event in client.watch_turn(turn.turn_id)]
                check_log(events)
                assert turn == folded(events)


async def test_a_turn_is_watched_and_cancelled_on_a_replica_that_does_not_run_it(tmp_path: Path, postgres: str):
    async with running_replicas(tmp_path, postgres, count=2, rules=RULES) as replicas:
        async with replicas.client(0) as client, replicas.client(1) as other:
            stream = client.run_turn(await session_of(client), "please hang")
            reading = asyncio.create_task(stream.result())
            await until(lambda: _all_began([stream]))
            assert 0 == await replicas.owner(client, stream.turn_id)
            watched = other.watch_turn(stream.turn_id)
            async with aclosing(aiter(watched)) as events:
                async for _ in events:
                    if watched.text == "x":
                        break  # text of a step that has not ended: it came from the owner
            begun = asyncio.get_running_loop().time()
            answer = await other.cancel_turn(stream.turn_id, reason="enough")

            assert asyncio.get_running_loop().time() - begun < 1
            assert turn_pb2.TURN_STATUS_CANCELLED == answer.status
            assert [turn_pb2.CancelledCall.OUTCOME_STOPPED] == [call.outcome for call in answer.calls]
            turn = await reading
            assert "enough" == turn.cancel_reason
            assert 0 == turn.recoveries  # its owner has ended it


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_turn_whose_owner_is_silent_is_cancelled_within_a_second(
    tmp_path: Path, postgres: str, number: signal.Signals
):
    async with running_replicas(tmp_path, postgres, count=2, rules=RULES) as replicas:
        async with replicas.client(0) as client, replicas.client(1) as other:
            stream = client.run_turn(await session_of(other), "please hang")
            reading = asyncio.create_task(stream.result())
            await until(lambda: _all_began([stream]))
            watched = other.watch_turn(stream.turn_id)
            watching = asyncio.create_task(watched.result())
            await until(lambda: _all_began([watched]))  # so the one is connected to the other
            await replicas.agents[0].signal("agent", number)
            begun = asyncio.get_running_loop().time()
            answer = await other.cancel_turn(stream.turn_id)

            assert asyncio.get_running_loop().time() - begun < 1.5
            assert turn_pb2.TURN_STATUS_CANCELLED == answer.status
            check_log([event async for event in other.watch_turn(stream.turn_id)])
            assert turn_pb2.TURN_STATUS_CANCELLED == (await watching).status
            stream.close()
            await asyncio.gather(reading, return_exceptions=True)


@pytest.mark.everyday
async def test_a_pause_is_answered_on_any_replica_after_its_owner_died(tmp_path: Path, postgres: str):
    async with running_replicas(tmp_path, postgres, count=2, rules=RULES) as replicas:
        async with replicas.client(0) as client, replicas.client(1) as other:
            session = await session_of(client, tools=[weather_tool()])
            stream = client.run_turn(session, "the weather?")
            turn = await stream.result()
            assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status
            following = other.watch_turn(stream.turn_id, follow_pauses=True)
            reading = asyncio.create_task(following.result())
            await replicas.agents[0].kill("agent")
            waiting = await other.agent_stub.ListTurns(
                agent_service_pb2.ListTurnsRequest(statuses=[turn_pb2.TURN_STATUS_AWAITING_INPUT])
            )
            assert [stream.turn_id] == [each.turn_id for each in waiting.turns]
            call = waiting.turns[0].awaited_input.requests[0].call
            result = message_pb2.ToolResult(call_id=call.call_id, content="sunny")
            await other.submit_turn_input(stream.turn_id, [result])

            turn = await reading
            assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
            assert 0 == turn.recoveries
            assert turn == await other.get_turn(stream.turn_id)


async def test_one_answer_given_on_all_replicas_at_once_is_taken_once(tmp_path: Path, postgres: str):
    async with running_replicas(tmp_path, postgres, rules=RULES) as replicas, replicas.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        turn = await client.run_turn(session, "the weather?").result()
        call = turn.awaited_input.requests[0].call
        result = message_pb2.ToolResult(call_id=call.call_id, content="sunny")

        async def answer(number: int) -> int:
            async with replicas.client(number % 3) as own:
                return (await own.submit_turn_input(turn.turn_id, [result])).sequence

        sequences = await asyncio.gather(*(answer(number) for number in range(12)))

        assert 1 == len(set(sequences))
        events = [event async for event in client.watch_turn(turn.turn_id)]
        check_log(events)
        assert 1 == [event.WhichOneof("payload") for event in events].count("turn_input_received")


async def test_an_unwatched_turn_is_cancelled_after_a_recovery_and_not_while_another_replica_shows_it(
    tmp_path: Path, postgres: str
):
    rules = [{"contains": "hang", "text": "x", "hang": True}]
    async with (
        running_replicas(tmp_path, postgres, count=2, rules=rules, disconnect_grace_seconds=1.0) as replicas,
        replicas.client(0) as client,
        replicas.client(1) as other,
    ):
        stream = client.run_turn(
            await session_of(other), "please hang", disconnect_policy=agent_service_pb2.DISCONNECT_POLICY_CANCEL
        )
        reading = asyncio.create_task(stream.result())
        await until(lambda: _all_began([stream]))
        watched = other.watch_turn(stream.turn_id)
        watching = asyncio.create_task(watched.result())
        await until(lambda: _all_began([watched]))
        stream.close()
        await asyncio.gather(reading, return_exceptions=True)
        await asyncio.sleep(1.5)  # longer than a turn runs unwatched
        assert turn_pb2.TURN_STATUS_RUNNING == (await other.get_turn(stream.turn_id)).status
        watched.close()
        await replicas.agents[0].kill("agent")
        await asyncio.gather(watching, return_exceptions=True)

        async def ended() -> bool:
            return (await other.get_turn(stream.turn_id)).status == turn_pb2.TURN_STATUS_CANCELLED

        await until(ended)
        assert 1 == (await other.get_turn(stream.turn_id)).recoveries


@pytest.mark.everyday
async def test_who_does_not_run_a_turn_says_so_to_other_replicas(tmp_path: Path, postgres: str):
    async with running_replicas(tmp_path, postgres, count=1, rules=RULES) as replicas, replicas.client() as client:
        from turnwire.agent.v1 import turn_owner_service_pb2 as messages
        from turnwire.agent.v1.turn_owner_service_pb2_grpc import TurnOwnerServiceStub

        turn = await client.run_turn(await session_of(client), "hello").result()
        async with grpc.aio.insecure_channel(replicas.agents[0].address("agent")) as channel:
            stub: Any = TurnOwnerServiceStub(channel)
            for call in (
                stub.FollowTurn(messages.FollowTurnRequest(turn_id=turn.turn_id)),
                stub.DeliverInbox(messages.DeliverInboxRequest(turn_id=turn.turn_id)),
            ):
                with pytest.raises(grpc.RpcError) as raised:
                    await call.read()
                assert isinstance(from_rpc_error(raised.value, service="agent"), NotOwner)
