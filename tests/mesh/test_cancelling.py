"""A turn is cancelled within a second whatever is silent; what its tools do ends then, or as soon as that can be."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.fakes.search_servers import FakeSearch, fake_search
from tests.mesh.asking import session_of, until
from tests.tool_executor.calling import CANCELLED, CODE, SECRET, Executor, calling, searching
from turnwire.agent.v1 import agent_pb2, event_pb2, turn_pb2
from turnwire.errors import NotFound
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.client import Client
    from turnwire.client.turn_stream import TurnStream

pytestmark = [pytest.mark.mesh, pytest.mark.faults]

STOPPED = turn_pb2.CancelledCall.OUTCOME_STOPPED
UNKNOWN = turn_pb2.CancelledCall.OUTCOME_UNKNOWN
WAITING = "import time\nprint('begun', flush=True)\ntime.sleep(600)"
RULES = [
    {"contains": "search", "calls": [{"name": "web_search", "arguments": {"query": "turnwire"}}]},
    {"contains": "compute", "calls": [{"name": "code_interpreter", "arguments": {"code": WAITING}}]},
]


@dataclass
class _Searching:
    """A turn whose tool waits for a server that does not answer."""

    mesh: RunningMesh
    client: Client
    executor: Executor
    search: FakeSearch
    stream: TurnStream

    async def call_id(self) -> str:
        """Returns the id of its call."""
        turn = await self.client.get_turn(self.stream.turn_id)
        (call_id,) = [each.call.call_id for step in turn.steps for each in step.tool_execution.executions]
        return call_id

    async def until_stopped(self, call_id: str) -> None:
        """Waits until the journal has the call as stopped, and its request is gone."""

        async def stopped() -> bool:
            try:
                return CANCELLED == (await self.executor.execution(call_id, self.stream.turn_id)).state
            except NotFound:
                return False

        await until(stopped)

        async def gone() -> bool:
            return 0 == self.search.open

        await until(gone)


@asynccontextmanager
async def _searching() -> AsyncGenerator[_Searching]:
    async with fake_search() as search:
        scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}
        search.script = ["hang"]
        async with (
            running_mesh(
                "processes",
                services=("inference", "tool_executor", "agent"),
                providers={"inference": [scripted], "tool_executor": [searching(search)]},
                access=SECRET,
            ) as mesh,
            mesh.client() as client,
            calling(mesh) as executor,
        ):
            tool = agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="web_search"))
            stream = client.run_turn(await session_of(client, tools=[tool]), "search")
            reading = asyncio.create_task(stream.result())
            await search.asked.wait()
            try:
                yield _Searching(mesh, client, executor, search, stream)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def test_a_tool_is_stopped_with_its_request():
    async with _searching() as turn:
        answer = await turn.client.cancel_turn(turn.stream.turn_id)
        await turn.until_stopped(await turn.call_id())

    assert [STOPPED] == [call.outcome for call in answer.calls]


@pytest.mark.everyday
async def test_a_silent_executor_holds_no_canceller_up_and_stops_the_tool_when_it_is_heard_again():
    async with _searching() as turn:
        await turn.mesh.signal("tool_executor", signal.SIGSTOP)
        begun = asyncio.get_running_loop().time()
        answer = await turn.client.cancel_turn(turn.stream.turn_id)
        took = asyncio.get_running_loop().time() - begun
        await turn.mesh.signal("tool_executor", signal.SIGCONT)
        await turn.until_stopped(await turn.call_id())

    assert took < 1.5
    assert [UNKNOWN] == [call.outcome for call in answer.calls]
    assert turn_pb2.TURN_STATUS_CANCELLED == answer.status


async def test_an_executor_that_is_back_before_the_cancelling_is_over_says_what_became_of_the_tool():
    async with _searching() as turn:
        await turn.mesh.signal("tool_executor", signal.SIGSTOP)
        cancelling = asyncio.create_task(turn.client.cancel_turn(turn.stream.turn_id))
        await asyncio.sleep(0.2)  # silent for less than a cancelling lasts
        await turn.mesh.signal("tool_executor", signal.SIGCONT)
        answer = await cancelling

    assert [STOPPED] == [call.outcome for call in answer.calls]


@pytest.mark.parametrize("frozen", [False, True])
async def test_code_is_said_to_be_stopped_only_by_a_runner_that_is_heard_of(*, frozen: bool):
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}
    async with (
        running_mesh(
            "processes",
            services=("inference", "sandbox_runner", "tool_executor", "agent"),
            providers={"inference": [scripted], "tool_executor": [CODE]},
            access=SECRET,
            sandbox={"preload": []},
        ) as mesh,
        mesh.client() as client,
    ):
        tool = agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="code_interpreter"))
        stream = client.run_turn(await session_of(client, tools=[tool]), "compute")
        async for event in stream:
            if event.step_delta.part == event_pb2.DELTA_PART_TOOL_OUTPUT:
                break
        if frozen:
            await mesh.signal("sandbox_runner", signal.SIGSTOP)
        begun = asyncio.get_running_loop().time()
        answer = await client.cancel_turn(stream.turn_id)
        took = asyncio.get_running_loop().time() - begun
        stream.close()

    assert took < 1.5
    assert [UNKNOWN if frozen else STOPPED] == [call.outcome for call in answer.calls]
