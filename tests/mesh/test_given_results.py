"""Results that callers and people give for calls: no event has them before the shields of their tools passed them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.contract.calling import dump
from tests.mesh.asking import check_log, folded, session_of, until, until_up, weather_tool
from tests.mesh.peers import Peers, running_peers
from turnwire.agent import records
from turnwire.agent.replay import replay
from turnwire.agent.v1 import agent_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2, shield_pb2
from turnwire.errors import TurnFinished
from turnwire.testing.mesh import RunningMesh, Topology, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.agent.v1 import event_pb2
    from turnwire.client import Client

pytestmark = pytest.mark.mesh

WEATHER = {"name": "get_weather", "arguments": {"city": "Rome"}}
RULES = [
    {"after_tool": True, "text": "All is done."},
    {"contains": "weather", "calls": [WEATHER]},
    {"contains": "lose", "calls": [{"name": "losing", "arguments": {"text": "x"}}]},
    {"contains": "both", "calls": [WEATHER, {"name": "get_time", "arguments": {"city": "Rome"}}]},
]
PROVIDE = turn_pb2.OutcomeDecision.CHOICE_PROVIDE
SKIP = turn_pb2.OutcomeDecision.CHOICE_SKIP


@asynccontextmanager
async def _mesh(topology: Topology = "one_process") -> AsyncGenerator[tuple[RunningMesh, Peers, Client]]:
    async with (
        running_peers() as peers,
        running_mesh(topology, rules=RULES, addresses=peers.addresses) as mesh,
        mesh.client() as client,
    ):
        yield mesh, peers, client


def _function(*shields: str, name: str = "get_weather") -> agent_pb2.AgentTool:
    tool = weather_tool(name)
    tool.output_shields.extend(shields)
    return tool


def _losing(*shields: str) -> agent_pb2.AgentTool:
    return agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="losing"), output_shields=shields)


async def _paused(client: Client, text: str, *tools: agent_pb2.AgentTool) -> tuple[turn_pb2.Turn, list[str]]:
    """Runs a turn until it waits; the ids of the calls that it waits for."""
    turn = await client.run_turn(await session_of(client, tools=list(tools)), text).result()
    assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status
    return turn, [request.call.call_id for request in turn.awaited_input.requests]


async def _give(
    client: Client, turn_id: str, call_id: str, content: str, *, decides: bool = False, why: str = ""
) -> int:
    """Gives a result, or a failure that says `why`; the number of the event that tells so."""
    result = message_pb2.ToolResult(content=content)
    if why:
        result.failure.reason = error_pb2.ERROR_REASON_TOOL_FAILED
        result.failure.message = why
        result.failure.metadata["city"] = why
    if decides:
        return (await client.resolve_turn_call(turn_id, call_id, PROVIDE, result=result)).sequence
    result.call_id = call_id
    return (await client.submit_turn_input(turn_id, [result])).sequence


async def _ended(client: Client, turn_id: str) -> tuple[list[event_pb2.StepEvent], turn_pb2.Turn]:
    events = [event async for event in client.watch_turn(turn_id)]
    check_log(events)
    turn = folded(events)
    assert turn == await client.get_turn(turn_id)
    assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
    return events, turn


def _results(turn: turn_pb2.Turn) -> list[message_pb2.ToolResult]:
    return [execution.result for step in turn.steps for execution in step.tool_execution.executions]


def _screenings(turn: turn_pb2.Turn) -> list[tuple[str, str]]:
    """The calls whose results were judged, and how the step of that ended."""
    return [
        (step.shield_call.call_id, step_pb2.StepStatus.Name(step.status).removeprefix("STEP_STATUS_"))
        for step in turn.steps
        if step.shield_call.point == shield_pb2.SHIELD_POINT_TOOL_RESULT
    ]


def _stored(mesh: RunningMesh, table: str = "") -> bytes:
    """All that is stored, of one table or of all."""
    rows = [row for name, rows in dump(mesh.folder).items() if name.endswith(table) for row in rows]
    return b"\n".join(cell for row in rows for cell in row if isinstance(cell, bytes))


@pytest.mark.parametrize("decides", [False, True], ids=["function", "provided"])
async def test_what_passes_of_a_given_result_is_what_the_turn_has_of_it(*, decides: bool):
    async with _mesh() as (mesh, peers, client):
        tool = _losing("hide-4711") if decides else _function("hide-4711")
        paused, (call_id,) = await _paused(client, "lose it" if decides else "the weather?", tool)
        given = [await _give(client, paused.turn_id, call_id, "it is 4711", decides=decides) for _ in range(2)]
        events, turn = await _ended(client, paused.turn_id)
        again = await _give(client, paused.turn_id, call_id, "it is 4711", decides=decides)
        stored = _stored(mesh)
        exported = await client.export_turn(paused.turn_id)

    assert [given[0]] * 3 == [*given, again]
    assert ["it is [hidden]"] == [result.content for result in _results(turn)]
    assert [(call_id, "COMPLETED")] == _screenings(turn)
    assert ["it is 4711"] == [message.parts[0].text for each in peers.shielded for message in each.messages]
    assert "4711" not in "".join(str(event) for event in events).replace("hide-4711", "")
    assert b"4711" not in stored.replace(b"hide-4711", b"")
    assert replay(records.read(exported)).difference is None


@pytest.mark.parametrize("decides", [False, True], ids=["function", "provided"])
async def test_a_given_result_that_a_shield_objects_to_ends_the_turn_with_its_answer(*, decides: bool):
    async with _mesh() as (mesh, _, client):
        tool = _losing("no-evil") if decides else _function("no-evil")
        paused, (call_id,) = await _paused(client, "lose it" if decides else "the weather?", tool)
        await _give(client, paused.turn_id, call_id, "an evil plan", decides=decides)
        events, turn = await _ended(client, paused.turn_id)
        stored = _stored(mesh)

    assert "I do not talk of evil." == turn.output.parts[0].text
    assert [error_pb2.ERROR_REASON_TOOL_DENIED] == [result.failure.reason for result in _results(turn)]
    assert "evil plan" not in "".join(str(event) for event in events)
    assert b"evil plan" not in stored


async def test_what_a_given_failure_says_passes_the_shields_too():
    async with _mesh() as (mesh, _, client):
        paused, (call_id,) = await _paused(client, "the weather?", _function("hide-4711"))
        await _give(client, paused.turn_id, call_id, "", why="4711 is no city")
        _, turn = await _ended(client, paused.turn_id)
        stored = _stored(mesh)

    (result,) = _results(turn)
    assert (error_pb2.ERROR_REASON_TOOL_FAILED, "[hidden] is no city") == (
        result.failure.reason,
        result.failure.message,
    )
    assert {} == dict(result.failure.metadata), "no shield has seen them"
    assert b"4711 is" not in stored


async def test_a_given_failure_keeps_its_facts_where_nothing_judges_it():
    async with _mesh() as (_, _, client):
        paused, (call_id,) = await _paused(client, "the weather?", _function())
        await _give(client, paused.turn_id, call_id, "", why="4711 is no city")
        _, turn = await _ended(client, paused.turn_id)

    assert {"city": "4711 is no city"} == dict(_results(turn)[0].failure.metadata)


async def test_a_result_that_nothing_judges_is_taken_as_it_is_and_one_that_is_judged_waits_for_all_answers():
    async with _mesh() as (mesh, peers, client):
        tools = (_function("hide-4711"), _function(name="get_time"))
        paused, (weather, time) = await _paused(client, "both", *tools)
        await _give(client, paused.turn_id, weather, "it is 4711")
        half = await client.get_turn(paused.turn_id)
        told = _stored(mesh, "events")
        await _give(client, paused.turn_id, weather, "it is 4711")
        judged = len(peers.shielded)
        await _give(client, paused.turn_id, time, "noon at 4711")
        _, turn = await _ended(client, paused.turn_id)

    assert [time] == [request.call.call_id for request in half.awaited_input.requests]
    assert [True, False] == [each.held for step in half.steps for each in step.tool_execution.executions]
    assert (b"it is" not in told, 0) == (True, judged)
    assert ["it is [hidden]", "noon at 4711"] == [result.content for result in _results(turn)]
    assert [(weather, "COMPLETED")] == _screenings(turn)


async def test_a_call_in_doubt_that_is_skipped_asks_no_shield_and_takes_no_result_any_more():
    async with _mesh() as (_, peers, client):
        paused, (call_id,) = await _paused(client, "lose it", _losing("no-evil"))
        await client.resolve_turn_call(paused.turn_id, call_id, SKIP)
        _, turn = await _ended(client, paused.turn_id)
        with pytest.raises(TurnFinished):
            await _give(client, paused.turn_id, call_id, "else", decides=True)

    assert [error_pb2.ERROR_REASON_OUTCOME_UNKNOWN] == [result.failure.reason for result in _results(turn)]
    assert [] == peers.shielded


@pytest.mark.faults
@pytest.mark.parametrize(
    "decides", [pytest.param(False, id="function", marks=pytest.mark.everyday), pytest.param(True, id="provided")]
)
async def test_a_given_result_outlives_the_process_that_had_it_judged(*, decides: bool):
    async with _mesh("processes") as (mesh, peers, client):
        tool = _losing("hide-4711") if decides else _function("hide-4711")
        paused, (call_id,) = await _paused(client, "lose it" if decides else "the weather?", tool)
        peers.delay = 3600.0
        await _give(client, paused.turn_id, call_id, "it is 4711", decides=decides)

        async def asked() -> bool:
            return bool(peers.shielded)

        await until(asked)
        await mesh.kill("agent")
        told = _stored(mesh, "events")
        peers.delay = 0.0
        await mesh.start("agent")
        await until_up(client, "agent")
        _, turn = await _ended(client, paused.turn_id)
        stored = _stored(mesh)

    assert b"it is" not in told
    assert 1 == turn.recoveries
    assert ["it is [hidden]"] == [result.content for result in _results(turn)]
    assert [(call_id, "FAILED"), (call_id, "COMPLETED")] == _screenings(turn)
    assert b"it is 4711" not in stored


async def test_a_result_that_waits_for_its_shields_is_gone_with_a_turn_that_is_cancelled():
    async with _mesh() as (mesh, peers, client):
        paused, (call_id,) = await _paused(client, "the weather?", _function("hide-4711"))
        peers.delay = 3600.0
        await _give(client, paused.turn_id, call_id, "it is 4711")
        await client.cancel_turn(paused.turn_id)
        turn = await client.get_turn(paused.turn_id)
        stored = _stored(mesh)

    assert turn_pb2.TURN_STATUS_CANCELLED == turn.status
    assert b"it is 4711" not in stored
