"""What the agent service does by itself: pauses run out, sessions are erased, turns are never left lying."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from typing import Any

import pytest

from tests.contract.calling import dump
from tests.mesh.asking import check_log, folded, session_of, until, weather_tool
from turnwire.agent.live.acceptance import Acceptance
from turnwire.agent.live.control import TurnControl
from turnwire.agent.store import events, ownership
from turnwire.agent.store.inbox import CANCEL
from turnwire.agent.turn.history import History
from turnwire.agent.turn.runner import TurnRunner
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import NotFound, StoreUnavailable
from turnwire.testing.mesh import running_mesh

pytestmark = pytest.mark.mesh

RULES = [
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "after_tool": False},
    {"after_tool": True, "tokens": 1000, "tokens_per_second": 20},
]
QUICK = {"sweep_seconds": 0.05, "lease_renew_seconds": 0.05}


async def test_a_session_that_is_not_kept_is_erased_with_its_turns_and_a_kept_one_stays():
    async with running_mesh(agent=QUICK | {"erase_seconds": 1.5}) as mesh, mesh.client() as client:
        kept = await session_of(client)
        turns = [(await client.run_turn(kept, "a secret").result()).turn_id]
        passing = await session_of(client, enable_session_persistence=False)
        turns.append((await client.run_turn(passing, "a secret").result()).turn_id)

        await until(lambda: _is_gone(client, passing))

        with pytest.raises(NotFound):
            await client.get_turn(turns[1])
        assert turns[0] == (await client.get_turn(turns[0])).turn_id
        rows = dump(mesh.folder)
        assert [turns[0]] == [row[1] for row in rows["agent.sqlite3/turns"]]
        assert {turns[0]} == {row[1] for row in rows["agent.sqlite3/events"]}


async def test_a_pause_that_nobody_answers_runs_out():
    async with running_mesh(rules=RULES, agent=QUICK | {"pause_seconds": 0.2}) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client, tools=[weather_tool()]), "the weather?", follow_pauses=True)
        turn = await stream.result()

        assert turn_pb2.TURN_STATUS_FAILED == turn.status
        assert error_pb2.ERROR_REASON_INPUT_EXPIRED == turn.failure.reason
        assert turn == await client.get_turn(stream.turn_id)
        check_log([event async for event in client.watch_turn(stream.turn_id)])


async def test_a_pause_runs_out_on_time_however_seldom_is_swept():
    settings = {"pause_seconds": 0.2, "sweep_seconds": 3600, "lease_renew_seconds": 0.05}
    async with running_mesh(rules=RULES, agent=settings) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client, tools=[weather_tool()]), "the weather?", follow_pauses=True)

        assert error_pb2.ERROR_REASON_INPUT_EXPIRED == (await stream.result()).failure.reason


async def test_a_turn_that_cannot_be_looked_after_keeps_no_other_from_it():
    settings = {"pause_seconds": 0.5, "lease_renew_seconds": 0.05}
    async with running_mesh(rules=RULES, agent=settings) as mesh, mesh.client() as client:
        damaged = await client.run_turn(await session_of(client, tools=[weather_tool()]), "the weather?").result()
        with closing(sqlite3.connect(mesh.folder / "data" / "agent.sqlite3")) as database:
            row = ("default", damaged.turn_id, "entry_1", CANCEL, b"\xff", 0)
            database.execute("INSERT INTO turn_inbox VALUES (?, ?, ?, ?, ?, ?)", row)
            database.commit()
        other = client.run_turn(await session_of(client, tools=[weather_tool()]), "the weather?", follow_pauses=True)

        assert error_pb2.ERROR_REASON_INPUT_EXPIRED == (await other.result()).failure.reason


async def test_active_time_goes_on_after_a_pause_which_is_not_counted():
    slow_call = RULES[0] | {"tokens": 13, "tokens_per_second": 10}
    async with running_mesh(rules=[slow_call, RULES[1]]) as mesh, mesh.client() as client:
        limits = agent_pb2.TurnLimits()
        limits.active_time.FromMilliseconds(3000)
        session = await session_of(client, tools=[weather_tool()], limits=limits)
        stream = client.run_turn(session, "the weather?")
        paused = await stream.result()
        result = message_pb2.ToolResult(call_id=paused.awaited_input.requests[0].call.call_id, content="sunny")
        await client.submit_turn_input(stream.turn_id, [result])
        turn = await client.watch_turn(stream.turn_id).result()

        assert error_pb2.ERROR_REASON_BUDGET_EXHAUSTED == turn.failure.reason
        calling, answering = (
            step.end_time.ToMilliseconds() - step.start_time.ToMilliseconds() for step in (turn.steps[0], turn.steps[2])
        )
        assert 1200 <= calling
        assert answering < 2700, "the second step had more than what the first one left"
        assert 2990 <= calling + answering


async def test_a_turn_that_a_defect_has_left_lying_goes_on(monkeypatch: pytest.MonkeyPatch):
    broken = True
    commit = TurnRunner._commit

    async def commit_or_break(self: TurnRunner, events: list[Any]) -> Any:
        nonlocal broken
        if broken and events:
            broken = False
            raise RuntimeError("a defect")
        return await commit(self, events)

    monkeypatch.setattr(TurnRunner, "_commit", commit_or_break)
    async with running_mesh(agent=QUICK) as mesh, mesh.client() as client:
        stream = client.run_turn(await session_of(client), "hello")
        turn = await stream.result()

        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert 1 == turn.recoveries
        assert turn == await client.get_turn(stream.turn_id)
        log = [event async for event in client.watch_turn(stream.turn_id)]
        check_log(log)
        assert turn == folded(log)


def _leaving(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, handler: Any, method: str) -> asyncio.Event:
    """Has a function of the store wait, once, until the call that `handler` answers is gone.

    Returns what is set when it waits.
    """
    waits, gone = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    work, answer = getattr(where, name), getattr(handler, method)

    async def after_all_have_left(*args: Any, **kwargs: Any) -> Any:
        loop.call_soon_threadsafe(waits.set)
        assert gone.wait(30)  # in the thread of the store
        return await work(*args, **kwargs)

    async def noting(*args: Any) -> Any:
        try:
            return await answer(*args)
        except asyncio.CancelledError:
            gone.set()
            raise

    monkeypatch.setattr(where, name, after_all_have_left)
    monkeypatch.setattr(handler, method, noting)
    return waits


async def test_a_turn_whose_caller_leaves_while_it_is_being_stored_runs_at_once(monkeypatch: pytest.MonkeyPatch):
    async with running_mesh() as mesh, mesh.client() as client:
        session = await session_of(client)
        waits = _leaving(monkeypatch, events, "append", Acceptance, "accept")
        request = agent_service_pb2.RunTurnRequest(session_id=session, turn_id="left", messages=[user_message("hello")])
        call: Any = client.agent_stub.RunTurn(request)
        await waits.wait()
        call.cancel()

        async def ended() -> bool:
            listed = await client.list_turns(session_id=session)
            return [turn_pb2.TURN_STATUS_COMPLETED] == [turn.status for turn in listed.turns]

        await until(ended)
        assert 0 == (await client.get_turn("left")).recoveries


async def test_an_answer_whose_giver_leaves_while_it_is_being_taken_lets_the_turn_go_on(
    monkeypatch: pytest.MonkeyPatch,
):
    rules = [RULES[0], {"after_tool": True, "text": "It is sunny."}]
    async with running_mesh(rules=rules) as mesh, mesh.client() as client:
        turn = await client.run_turn(await session_of(client, tools=[weather_tool()]), "the weather?").result()
        result = message_pb2.ToolResult(call_id=turn.awaited_input.requests[0].call.call_id, content="sunny")
        waits = _leaving(monkeypatch, ownership, "claim", TurnControl, "submit")
        submitting = asyncio.create_task(client.submit_turn_input(turn.turn_id, [result]))
        await waits.wait()
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)

        async def ended() -> bool:
            return (await client.get_turn(turn.turn_id)).status == turn_pb2.TURN_STATUS_COMPLETED

        await until(ended)


async def test_the_steps_of_a_turn_are_in_the_trace_of_the_call_that_began_it():
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with running_mesh(rules=RULES[:1]) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        request: Any = client.run_turn(session, "the weather?")._request
        metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
        turn = folded([event async for event in client.agent_stub.RunTurn(request, metadata=metadata)])

        assert [trace] * 3 == [turn.trace_id, *(step.trace_id for step in turn.steps)]


async def _is_gone(client: Any, session: str) -> bool:
    try:
        await client.get_session(session)
    except NotFound:
        return True
    return False


async def test_a_turn_waits_for_a_store_that_is_away_while_it_reads_the_turns_before(monkeypatch: pytest.MonkeyPatch):
    before = History.before
    failures = [StoreUnavailable("agent", "it restarts")] * 2

    async def failing(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return await before(*given)

    monkeypatch.setattr(History, "before", failing)
    async with running_mesh() as mesh, mesh.client() as client:
        turn = await client.run_turn(await session_of(client), "hello").result()

    assert (turn_pb2.TURN_STATUS_COMPLETED, []) == (turn.status, failures)
