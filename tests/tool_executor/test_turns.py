"""Whole turns of the agent service with the real tool executor and sandbox runner."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.search_servers import fake_search
from tests.mesh.asking import check_log, folded, session_of
from tests.mesh.peers import running_peers
from tests.tool_executor.calling import CODE, SECRET, Executor, calling, names, searching
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2
from turnwire.testing.mesh import RunningMesh, Topology, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.client import Client

pytestmark = pytest.mark.mesh
_DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nprint(open('table.csv').read())\n6 * 7"
_ENDLESS = "print('begun', flush=True)\nwhile True: pass"


def _code(text: str) -> dict[str, Any]:
    return {"name": "code_interpreter", "arguments": {"code": text}}


RULES = [
    {"contains": "figure-1.png", "text": "It is 42."},
    {"contains": "begun", "text": "It was lost."},
    {"after_tool": True, "text": "All is done."},
    {"contains": "draw", "calls": [_code(_DRAW)]},
    {"contains": "endless", "calls": [_code(_ENDLESS)]},
    {"contains": "both", "calls": [_code("'a' * 3"), {"name": "web_search", "arguments": {"query": "turnwire"}}]},
    {"contains": "twice", "calls": [_code("import os; sorted(os.listdir('.'))"), _code("1 + 1")]},
]


@asynccontextmanager
async def _mesh(
    topology: Topology = "one_process", *providers: dict[str, Any]
) -> AsyncGenerator[tuple[RunningMesh, Client, Executor]]:
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}
    async with (
        running_mesh(
            topology,
            services=("inference", "sandbox_runner", "tool_executor", "agent"),
            providers={"inference": [scripted], "tool_executor": [CODE, *providers]},
            access=SECRET,
            sandbox={"preload": []},
        ) as mesh,
        mesh.client() as client,
        calling(mesh) as executor,
    ):
        yield mesh, client, executor


def _tool(tool_id: str) -> agent_pb2.AgentTool:
    return agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=tool_id))


async def _events(client: Client, session_id: str, message: message_pb2.Message) -> list[event_pb2.StepEvent]:
    request = agent_service_pb2.RunTurnRequest(session_id=session_id, messages=[message])
    return [event async for event in client.agent_stub.RunTurn(request, timeout=60)]


def _executions(turn: turn_pb2.Turn) -> list[step_pb2.ToolExecution]:
    return [execution for step in turn.steps for execution in step.tool_execution.executions]


async def test_code_runs_on_attached_files_and_its_figure_travels_to_the_answer():
    choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name="code_interpreter")
    async with _mesh() as (_, client, executor):
        session = await session_of(client, tools=[_tool("code_interpreter")], tool_choice=choice)
        said = user_message("draw it")
        # One that stands in the event, and one that is too large for it.
        said.attachments.add(text="a,b\n1,2\n", name="table.csv")
        said.attachments.add(data=b"x" * 100_000, name="large.bin")
        events = await _events(client, session, said)
        turn = folded(events)
        (execution,) = _executions(turn)
        noted = await executor.execution(execution.call.call_id, turn.turn_id)
        figure = await executor.download(turn.output.attachments[0].artifact_id)

    check_log(events)
    assert "It is 42." == turn.output.parts[0].text
    assert ["figure-1.png"] == names(turn.output.attachments)
    assert figure.startswith(b"\x89PNG")
    assert execution.result.content.startswith("a,b\n1,2")
    assert "42" in execution.result.content.splitlines()
    assert (1, noted.result.content) == (noted.owner_epoch, execution.result.content)


async def test_two_tools_of_one_answer_run_and_answer_in_order():
    async with fake_search() as fake, _mesh("one_process", searching(fake)) as (_, client, _executor):
        session = await session_of(client, tools=[_tool("code_interpreter"), _tool("web_search")])
        turn = folded(await _events(client, session, user_message("both")))

    assert ["code_interpreter", "web_search"] == [each.result.name for each in _executions(turn)]
    assert ["'aaa'", True] == [_executions(turn)[0].result.content, "Zweite" in _executions(turn)[1].result.content]
    assert "All is done." == turn.output.parts[0].text


async def test_files_come_with_all_calls_of_the_first_answer_that_runs_code():
    choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name="code_interpreter")
    async with _mesh() as (_, client, _executor):
        session = await session_of(client, tools=[_tool("code_interpreter")], tool_choice=choice)
        said = user_message("twice")
        said.attachments.add(text="a", name="table.csv")
        turn = folded(await _events(client, session, said))

    assert ["['table.csv']", "2"] == [each.result.content for each in _executions(turn)]


async def test_later_code_of_a_turn_does_not_get_the_files_again():
    """Beside a scripted executor, to see what it is asked."""
    choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name="code_interpreter")
    again = {"name": "code_interpreter", "arguments": {"text": "second"}}
    refused = {"name": "code_interpreter", "arguments": {}}
    rules = [
        {"contains": "required property", "calls": [again | {"arguments": {"text": "first"}}]},
        {"contains": "first", "calls": [again]},
        {"after_tool": True, "text": "Done."},
        {"contains": "go", "calls": [refused]},
    ]
    async with (
        running_peers() as peers,
        running_mesh(rules=rules, addresses=peers.addresses) as mesh,
        mesh.client() as client,
    ):
        session = await session_of(client, tools=[_tool("code_interpreter")], tool_choice=choice)
        said = user_message("go")
        said.attachments.add(text="a", name="table.csv")
        turn = folded(await _events(client, session, said))

    assert "Done." == turn.output.parts[0].text
    # The first call that could run has them, whatever was refused before.
    assert [["table.csv"], []] == [names(each.attachments) for each in peers.executed]


async def test_cancelling_a_turn_stops_its_code_and_says_so():
    async with _mesh() as (_, client, executor):
        session = await session_of(client, tools=[_tool("code_interpreter")])
        request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("endless")])
        turn_id = ""
        async for event in client.agent_stub.RunTurn(request, timeout=60):
            turn_id = event.turn_id
            if event.step_delta.part == event_pb2.DELTA_PART_TOOL_OUTPUT:
                break
        stop = agent_service_pb2.CancelTurnRequest(turn_id=turn_id)
        cancelled = await client.agent_stub.CancelTurn(stop, timeout=20)
        (call,) = [each for each in cancelled.calls if each.call_id]
        noted = await executor.execution(call.call_id, turn_id)
        after = await executor.run("code_interpreter", {"code": "6 * 7"}, "call_after", session_id=session)

    assert turn_pb2.CancelledCall.OUTCOME_STOPPED == call.outcome
    assert error_pb2.ERROR_REASON_CANCELLED == noted.result.failure.reason
    assert after.result.content.startswith("42")


@pytest.mark.faults
async def test_a_model_is_told_that_the_outcome_is_not_known_where_its_agent_says_so():
    async with _mesh("processes") as (mesh, client, _executor):
        policy = agent_pb2.UNKNOWN_OUTCOME_POLICY_TELL_MODEL
        session = await session_of(client, tools=[_tool("code_interpreter")], unknown_outcome_policy=policy)
        seen = asyncio.Event()
        events: list[event_pb2.StepEvent] = []

        async def reading() -> None:
            request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("endless")])
            async for event in client.agent_stub.RunTurn(request, timeout=60):
                events.append(event)
                if event.step_delta.part == event_pb2.DELTA_PART_TOOL_OUTPUT:
                    seen.set()

        running = asyncio.create_task(reading())
        await seen.wait()
        await mesh.kill("tool_executor")
        await mesh.start("tool_executor")
        await running
        turn = folded(events)

    (execution,) = _executions(turn)
    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == execution.result.failure.reason
    assert turn_pb2.TURN_STATUS_COMPLETED == turn.status


@pytest.mark.faults
@pytest.mark.everyday
async def test_a_turn_whose_agent_dies_takes_up_the_execution_that_ran_on():
    async with fake_search() as fake, _mesh("processes", searching(fake)) as (mesh, client, executor):
        fake.script = ["hang"]
        session = await session_of(client, tools=[_tool("code_interpreter"), _tool("web_search")])
        request = agent_service_pb2.RunTurnRequest(
            session_id=session, messages=[user_message("both")], turn_id="turn_x"
        )
        running = asyncio.create_task(_drained(client, request))
        await fake.asked.wait()
        await mesh.kill("agent")
        await asyncio.gather(running, return_exceptions=True)
        await mesh.start("agent")
        fake.gate.set()
        turn = await client.watch_turn("turn_x").result()
        noted = [await executor.execution(each.call.call_id, "turn_x") for each in _executions(turn)]

    assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
    assert 1 == len(fake.requests)
    assert {2} == {each.owner_epoch for each in noted if each.tool_id == "web_search"}


async def _drained(client: Client, request: agent_service_pb2.RunTurnRequest) -> None:
    async for _ in client.agent_stub.RunTurn(request, timeout=60):
        pass
