"""Turns through the mesh, in both topologies."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.mesh.asking import check_log, events_of, folded, session_of, until, until_up, weather_tool
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2
from turnwire.errors import IdempotencyConflict, NotFound, SequenceOutOfRange, SessionBusy, from_rpc_error
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.mesh

RULES = [
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "after_tool": False},
    {"after_tool": True, "text": "It is sunny."},
    {"contains": "long", "tokens": 200, "tokens_per_second": 400},
    {"contains": "hang", "text": "half an answer", "hang": True},
    {"contains": "flaky", "text": "half", "error": "PROVIDER_UNAVAILABLE", "times": 1},
    {"contains": "broken", "text": "half", "error": "PROVIDER_ERROR"},
]


async def test_a_turn_is_whole_live_after_its_end_and_after_a_restart(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        events = await events_of(client, await session_of(client), "a long story")
        turn_id = events[0].turn_id
        check_log(events)
        turn = await client.get_turn(turn_id)
        assert turn == folded(events)
        assert "w1 w2 " == turn.output.parts[0].text[:6]

        for service in ("agent", "inference"):
            await mesh.stop(service)
        for service in ("inference", "agent"):
            await mesh.start(service)
        await until_up(client)

        assert turn == await client.get_turn(turn_id)
        again = [
            event async for event in client.agent_stub.WatchTurn(agent_service_pb2.WatchTurnRequest(turn_id=turn_id))
        ]
        check_log(again)
        assert turn == folded(again)


async def test_a_hundred_cuts_at_random_fold_to_the_same(mesh_in: Callable[..., Any]):
    chance = random.Random(3)
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client), "a long story")
        running = asyncio.create_task(stream.result())
        while not stream.fold.last_sequence:
            await asyncio.sleep(0.01)
        folds = [_cut_and_resumed(client, stream.turn_id, random.Random(chance.random())) for _ in range(100)]
        results = await asyncio.gather(*folds)
        expected = await running

        assert all(expected == result for result in results)
        assert expected == await client.get_turn(stream.turn_id)


async def _cut_and_resumed(client: Any, turn_id: str, chance: random.Random) -> turn_pb2.Turn:
    from turnwire.fold import TurnFold

    fold = TurnFold()
    while not fold.finished:
        request = agent_service_pb2.WatchTurnRequest(turn_id=turn_id, after_sequence=fold.last_sequence)
        call = client.agent_stub.WatchTurn(request, timeout=60)
        left = chance.randint(1, 60)
        try:
            async for event in call:
                fold.apply(event)
                left -= 1
                if left == 0:
                    break
        finally:
            call.cancel()
    return fold.turn


async def test_getting_a_running_turn_is_the_fold_of_what_was_shown(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        async with client.run_turn(await session_of(client), "please hang") as stream:
            async for _ in stream:
                if stream.text == "half an answer":
                    break
            live = await client.get_turn(stream.turn_id)
            assert stream.turn == live
            await client.cancel_turn(stream.turn_id)


async def test_one_turn_id_is_one_turn(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        streams = [client.run_turn(session, "a long story", turn_id="my-turn") for _ in range(200)]
        turns = await asyncio.gather(*(stream.result() for stream in streams))

        assert all(turns[0] == turn for turn in turns)
        assert 1 == len((await client.list_turns(session_id=session)).turns)
        with pytest.raises(IdempotencyConflict):
            await client.run_turn(session, "another story", turn_id="my-turn").result()


async def test_the_callers_functions_continue_the_same_turn(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        cities: list[str] = []

        async def get_weather(city: str) -> str:
            cities.append(city)
            return "sunny"

        stream = client.run_turn(session, "the weather?", tools={"get_weather": get_weather})
        turn = await stream.result()

        assert ["Berlin"] == cities
        assert "It is sunny." == stream.text
        assert turn == await client.get_turn(stream.turn_id)
        assert [1, 2, 1] == [step.type for step in turn.steps]


async def test_a_pause_outlives_a_restart_and_answers_are_idempotent(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        stream = client.run_turn(session, "the weather?")
        turn = await stream.result()
        assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status
        call_id = turn.awaited_input.requests[0].call.call_id
        await mesh.stop("agent")
        await mesh.start("agent")
        await until_up(client, "agent")

        result = message_pb2.ToolResult(call_id=call_id, content="sunny")
        first = await client.submit_turn_input(stream.turn_id, [result])
        again = await client.submit_turn_input(stream.turn_id, [result])
        ended = await client.watch_turn(stream.turn_id).result()

        assert first.sequence == again.sequence
        assert turn_pb2.TURN_STATUS_COMPLETED == ended.status
        assert ended == await client.get_turn(stream.turn_id)


async def test_history_keeps_order_roles_and_instructions(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=[]) as mesh, mesh.client() as client:
        session = await session_of(client, instructions="one two three four")
        for number in range(5):
            await client.run_turn(session, f"said {number}").result()
        turns = (await client.list_turns(session_id=session)).turns

        # Each turn reads the instructions (4 words), what was said and answered before (4 words a turn), and its own.
        assert [6, 10, 14, 18, 22] == [turn.usage.prompt_tokens for turn in turns]
        assert [1, 2, 3, 4, 5] == [turn.ordinal for turn in turns]
        fork = await client.fork_session(session, turn_id=turns[1].turn_id)
        forked = await client.run_turn(fork.session_id, "said fork").result()
        assert (14, 3) == (forked.usage.prompt_tokens, forked.ordinal)


async def test_one_turn_of_a_session_at_a_time(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        async with client.run_turn(session, "please hang") as stream:
            await anext(aiter(stream))
            with pytest.raises(SessionBusy) as raised:
                await client.run_turn(session, "another").result()
            assert stream.turn_id == raised.value.metadata["turn_id"]
            answer = await client.cancel_turn(stream.turn_id, reason="enough")

        assert turn_pb2.TURN_STATUS_CANCELLED == answer.status
        assert [turn_pb2.CancelledCall.OUTCOME_STOPPED] == [call.outcome for call in answer.calls]
        assert turn_pb2.TURN_STATUS_COMPLETED == (await client.run_turn(session, "another").result()).status


async def test_cancelling_keeps_what_was_seen_and_ends_the_log(mesh_in: Callable[..., Any]):
    async with mesh_in(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        events: list[Any] = []
        request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("please hang")])
        async for event in client.agent_stub.RunTurn(request):
            events.append(event)
            if event.step_delta.text.endswith("answer"):
                await client.cancel_turn(event.turn_id, reason="enough")
        check_log(events)

        turn = await client.get_turn(events[0].turn_id)
        assert turn == folded(events)
        assert ("enough", "half an answer") == (turn.cancel_reason, turn.steps[0].inference.text)


async def test_a_turn_cancelled_before_it_came_never_starts():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        await client.cancel_turn("not-yet", allow_missing=True)

        with pytest.raises(Exception, match="cancelled before"):
            await client.run_turn(session, "hello", turn_id="not-yet").result()
        assert not (await client.list_turns(session_id=session)).turns


async def test_a_failure_that_passes_is_tried_again_as_an_event():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        events = await events_of(client, await session_of(client), "a flaky one")
        check_log(events)
        restarts = [event.step_restarted for event in events if event.WhichOneof("payload") == "step_restarted"]

        assert [error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE] == [restart.cause.reason for restart in restarts]
        turn = folded(events)
        assert ("a flaky one", 2) == (turn.output.parts[0].text, turn.steps[0].attempt)


async def test_a_failure_that_stays_fails_the_turn():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        events = await events_of(client, await session_of(client), "a broken one")
        check_log(events)
        turn = folded(events)

        assert turn_pb2.TURN_STATUS_FAILED == turn.status
        assert error_pb2.ERROR_REASON_PROVIDER_ERROR == turn.failure.reason


async def test_watching_beyond_the_end_is_out_of_range():
    async with running_mesh() as mesh, mesh.client() as client:
        turn = await client.run_turn(await session_of(client), "hello").result()

        with pytest.raises(SequenceOutOfRange):
            await client.watch_turn(turn.turn_id, after_sequence=turn.last_sequence + 1).result()
        request = agent_service_pb2.WatchTurnRequest(turn_id=turn.turn_id, after_sequence=turn.last_sequence)
        assert [] == [event async for event in client.agent_stub.WatchTurn(request)]


async def test_overrides_hold_for_one_turn():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        overrides = agent_pb2.AgentConfig(
            sampling_parameters=generation_pb2.SamplingParameters(max_tokens=3), instructions="be brief"
        )
        cut = await client.run_turn(session, "a long story", overrides=overrides).result()
        whole = await client.run_turn(session, "a long story").result()

        assert message_pb2.STOP_REASON_OUT_OF_TOKENS == cut.output.stop_reason
        assert "w1 w2 w3 " == cut.output.parts[0].text
        assert 200 == whole.usage.completion_tokens


async def test_agents_have_versions_and_etags():
    async with running_mesh() as mesh, mesh.client() as client:
        agent = await client.create_agent(agent_pb2.AgentConfig(model="scripted", instructions="one"))
        stale = agent_pb2.Agent()
        stale.CopyFrom(agent)
        agent.config.instructions = "two"
        changed = await client.update_agent(agent, ["config.instructions"])
        assert (2, "two") == (changed.version, changed.config.instructions)
        assert "one" == (await client.get_agent(agent.agent_id, version=1)).config.instructions

        with pytest.raises(Exception, match="changed meanwhile"):
            await client.update_agent(stale, ["config"])
        renamed = await client.update_agent(agent_pb2.Agent(agent_id=agent.agent_id, name="n"), ["name"])
        assert (2, "n") == (renamed.version, renamed.name)
        await client.delete_agent(agent.agent_id)
        with pytest.raises(NotFound):
            await client.get_agent(agent.agent_id)


async def test_the_models_there_are_are_named():
    async with running_mesh() as mesh, mesh.client() as client:
        with pytest.raises(NotFound) as raised:
            await client.create_agent(agent_pb2.AgentConfig(model="gpt"))
        assert "scripted" == raised.value.metadata["available"]

        await client.register_model("mine", provider_model_id="scripted")
        session = await session_of(client)
        overrides = agent_pb2.AgentConfig(model="scripted/mine")
        turn = await client.run_turn(session, "hello", overrides=overrides).result()
        assert "mine" == turn.steps[0].inference.model_id
        await mesh.stop("inference")
        await mesh.start("inference")
        await until_up(client, "inference")
        assert "mine" == (await client.get_model("mine")).model_id


async def test_deletion_leaves_a_tombstone():
    async with running_mesh() as mesh, mesh.client() as client:
        session = await session_of(client)
        await client.run_turn(session, "hello", turn_id="gone").result()
        await client.delete_turn("gone")

        with pytest.raises(NotFound):
            await client.get_turn("gone")
        with pytest.raises(Exception, match="deleted"):
            await client.run_turn(session, "hello", turn_id="gone").result()
        await client.delete_session(session)
        with pytest.raises(NotFound):
            await client.get_session(session)


async def test_limits_of_active_time_end_a_turn():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        limits = agent_pb2.TurnLimits()
        limits.active_time.FromMilliseconds(200)
        turn = await client.run_turn(await session_of(client, limits=limits), "please hang").result()

        assert error_pb2.ERROR_REASON_BUDGET_EXHAUSTED == turn.failure.reason


async def test_an_unwatched_turn_that_asked_for_it_is_cancelled():
    async with running_mesh(rules=RULES, agent={"disconnect_grace_seconds": 0.2}) as mesh, mesh.client() as client:
        session = await session_of(client)
        policy = agent_service_pb2.DISCONNECT_POLICY_CANCEL
        async with client.run_turn(session, "please hang", disconnect_policy=policy) as stream:
            await anext(aiter(stream))

        async def cancelled() -> bool:
            return (await client.get_turn(stream.turn_id)).status == turn_pb2.TURN_STATUS_CANCELLED

        await until(cancelled)


async def test_heartbeats_tell_that_a_quiet_turn_lives():
    async with running_mesh(rules=RULES, agent={"heartbeat_seconds": 0.05}) as mesh, mesh.client() as client:
        session = await session_of(client)
        async with client.run_turn(session, "please hang", heartbeats=True) as stream:
            async for event in stream:
                if event.WhichOneof("payload") == "heartbeat":
                    assert stream.fold.last_sequence == event.sequence
                    break
        await client.cancel_turn(stream.turn_id)


async def test_what_is_not_built_is_refused_by_name():
    async with running_mesh() as mesh, mesh.client() as client:
        approved = agent_pb2.AgentTool(function=weather_tool().function, approval=agent_pb2.APPROVAL_POLICY_ALWAYS)
        with pytest.raises(Exception, match="approval"):
            await client.create_agent(agent_pb2.AgentConfig(model="scripted", tools=[approved]))
        with pytest.raises(Exception, match="SteerTurn"):
            await _raised(client.agent_stub.SteerTurn(agent_service_pb2.SteerTurnRequest()))


async def _raised(call: Any) -> None:
    import grpc

    try:
        await call
    except grpc.RpcError as error:
        raise from_rpc_error(error, service="agent") from error
