"""Effects of tools, while executor, agent and runner are killed: at most one a call id, and the turn ends or asks.

The tool with the effect has pictures made, which somebody pays for; its server stands outside of all that is killed,
and writes down the call id of each picture that it makes.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.images_server import FakeImages, fake_images
from tests.mesh.asking import check_log, events_of, folded, session_of, until
from tests.mesh.peers import running_peers
from tests.tool_executor.calling import CODE, PREPARED, SECRET, SUCCEEDED, Executor, calling, drawing
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import NotFound
from turnwire.fold import TurnFold
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.client import Client

pytestmark = [pytest.mark.mesh, pytest.mark.faults]

RETRY = turn_pb2.OutcomeDecision.CHOICE_RETRY
SKIP = turn_pb2.OutcomeDecision.CHOICE_SKIP
PROVIDE = turn_pb2.OutcomeDecision.CHOICE_PROVIDE
TURN = "turn_of_the_test"
WAITING = "import os\nprint('begun', flush=True)\nwhile not os.path.exists('never'): pass"
NOTED = "import os\nopen('effects.txt', 'a').write(os.environ['TURNWIRE_CALL_ID'] + ' ')\nopen('effects.txt').read()"


def _code(text: str) -> dict[str, Any]:
    return {"name": "code_interpreter", "arguments": {"code": text}}


RULES = [
    {"contains": "draw", "calls": [{"name": "photogen", "arguments": {"prompt": "red"}}]},
    {"contains": "note", "calls": [_code(NOTED)]},
    {"contains": "wait", "calls": [_code(WAITING)]},
    {"after_tool": True, "text": "All is done."},
]


@dataclass
class _World:
    """A mesh, a process each, whose pictures are made elsewhere."""

    mesh: RunningMesh
    client: Client
    executor: Executor
    images: FakeImages
    session_id: str
    events: list[event_pb2.StepEvent] = field(default_factory=list[event_pb2.StepEvent])
    """Of the first stream, for as long as it lasts."""
    log: list[event_pb2.StepEvent] = field(default_factory=list[event_pb2.StepEvent])
    """The whole turn, as it was read last."""
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    reading: asyncio.Task[None] | None = None

    async def begin(self, text: str) -> None:
        """Begins the turn and reads it, over one stream, for as long as that lasts."""
        self.reading = asyncio.create_task(self._read(text))
        await self.accepted.wait()

    async def _read(self, text: str) -> None:
        request = agent_service_pb2.RunTurnRequest(
            session_id=self.session_id, turn_id=TURN, messages=[user_message(text)]
        )
        async for event in self.client.agent_stub.RunTurn(request, timeout=60):
            self.events.append(event)
            self.accepted.set()

    async def left(self) -> None:
        """Waits for the end of the first stream, which a killed agent has cut."""
        assert self.reading is not None
        await asyncio.gather(self.reading, return_exceptions=True)

    async def call(self) -> step_pb2.ToolExecution:
        """Waits until the turn has called its tool; the call."""

        async def called() -> bool:
            try:
                return bool(_executions(await self.client.get_turn(TURN)))
            except NotFound:
                return False

        await until(called)
        return _executions(await self.client.get_turn(TURN))[0]

    async def until_noted(self, state: int, call_id: str) -> None:
        """Waits until the journal has a call in a state."""

        async def noted() -> bool:
            try:
                return (await self.executor.execution(call_id, TURN)).state == state
            except NotFound:
                return False

        await until(noted)

    async def restart(self, service: str) -> None:
        """Kills a service and starts it again."""
        await self.mesh.kill(service)
        await self.mesh.start(service)

    async def ended(self) -> turn_pb2.Turn:
        """Waits until the turn has ended, or asks; its whole log folds to what it is."""
        fold = TurnFold()
        events: list[event_pb2.StepEvent] = []

        async def read() -> bool:
            async for event in self.client.watch_turn(TURN):
                events.append(event)
                fold.apply(event)
            return True

        await until(read)
        check_log(events)
        self.log = events
        return fold.turn

    async def decide(
        self, choice: turn_pb2.OutcomeDecision.Choice.ValueType, result: message_pb2.ToolResult | None = None
    ) -> turn_pb2.Turn:
        """Decides about the one call in doubt; the turn as it ends then."""
        turn = await self.client.get_turn(TURN)
        (request,) = turn.awaited_input.requests
        assert turn_pb2.INPUT_KIND_OUTCOME_DECISION == request.kind
        await self.client.resolve_turn_call(TURN, request.call.call_id, choice, result=result)
        again = await self.client.resolve_turn_call(TURN, request.call.call_id, choice, result=result)
        assert not again.remaining
        return await self.ended()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> str:
    """Where the state is: the URL of either store."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else "sqlite"


@asynccontextmanager
async def _world(store: str = "sqlite", *, runner: bool = False) -> AsyncGenerator[_World]:
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}
    async with (
        fake_images() as images,
        running_mesh(
            "processes",
            services=("inference", *(["sandbox_runner"] if runner else []), "tool_executor", "agent"),
            providers={"inference": [scripted], "tool_executor": [CODE, drawing(images)]},
            access=SECRET,
            sandbox={"preload": []},
            store={"url": store},
            agent={"lease_seconds": 2.0, "lease_renew_seconds": 0.5, "sweep_seconds": 0.5},
        ) as mesh,
        mesh.client() as client,
        calling(mesh) as executor,
    ):
        tools = [
            agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=name))
            for name in ("code_interpreter", "photogen")
        ]
        session_id = await session_of(client, tools=tools)
        world = _World(mesh, client, executor, images, session_id)
        try:
            yield world
        finally:
            if world.reading is not None:
                world.reading.cancel()
                await world.left()


def _executions(turn: turn_pb2.Turn) -> list[step_pb2.ToolExecution]:
    return [execution for step in turn.steps for execution in step.tool_execution.executions]


def _check_done(turn: turn_pb2.Turn) -> None:
    assert (turn_pb2.TURN_STATUS_COMPLETED, "All is done.") == (turn.status, turn.output.parts[0].text)


def _check_asks(turn: turn_pb2.Turn) -> None:
    assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status
    assert [error_pb2.ERROR_REASON_OUTCOME_UNKNOWN] == [each.result.failure.reason for each in _executions(turn)]


@pytest.mark.everyday
async def test_without_a_fault_the_effect_is_there_once():
    async with _world() as world:
        await world.begin("draw")
        turn = await world.ended()

    _check_done(turn)
    assert [_executions(turn)[0].call.call_id] == world.images.effects


@pytest.mark.parametrize("service", ["tool_executor", "agent"])
async def test_what_was_only_prepared_when_a_process_died_runs_once(service: str, store: str):
    async with _world(store, runner=True) as world:
        # Over a connection that stands; the call then waits for a runner that does not answer.
        await world.executor.run("code_interpreter", {"code": "0"}, "call_0", session_id=world.session_id)
        await world.mesh.signal("sandbox_runner", signal.SIGSTOP)
        await world.begin("note")
        call = (await world.call()).call
        await world.until_noted(PREPARED, call.call_id)
        await world.mesh.kill(service)
        await world.mesh.signal("sandbox_runner", signal.SIGCONT)
        await world.mesh.start(service)
        turn = await world.ended()

    _check_done(turn)
    assert [f"'{call.call_id} '"] == [each.result.content.splitlines()[0] for each in _executions(turn)]


@pytest.mark.parametrize(
    "behaviour",
    [pytest.param("hang", id="before"), pytest.param("make and hang", id="after", marks=pytest.mark.everyday)],
)
async def test_what_an_executor_had_sent_when_it_died_is_asked_about_before_and_after_its_effect(
    behaviour: str, store: str
):
    async with _world(store) as world:
        world.images.script = [behaviour]
        await world.begin("draw")
        await world.images.asked.wait()
        await world.restart("tool_executor")
        turn = await world.ended()
        _check_asks(turn)
        further = [event.step_progress for event in world.log if event.step_progress.unit == "attempts"]
        made = list(world.images.effects)
        provided = message_pb2.ToolResult(content="I found it in the account.")
        done = await world.decide(PROVIDE, provided)

    first = _executions(turn)[0].call.call_id
    assert [(first, 2)] == [(each.call_id, each.done) for each in further[:1]]
    assert ([first] if behaviour == "make and hang" else []) == made
    _check_done(done)
    assert "I found it in the account." == _executions(done)[0].result.content
    assert 1 == len(world.images.requests)


async def test_a_retry_is_a_call_of_its_own_with_its_own_effect():
    async with _world() as world:
        world.images.script = ["make and hang"]
        await world.begin("draw")
        await world.images.asked.wait()
        await world.restart("tool_executor")
        _check_asks(await world.ended())
        turn = await world.decide(RETRY)
        second = await world.executor.execution(_executions(turn)[1].call.call_id, TURN)

    _check_done(turn)
    first, again = _executions(turn)
    assert [first.call.call_id, again.call.call_id] == world.images.effects
    assert (first.call.call_id, SUCCEEDED) == (second.retry_of, second.state)
    assert not again.result.HasField("failure")


@pytest.mark.parametrize("service", ["tool_executor", "agent"])
async def test_an_outcome_that_was_stored_when_a_process_died_is_taken(service: str, store: str):
    async with _world(store) as world:
        world.images.script = ["hang"]
        await world.begin("draw")
        await world.images.asked.wait()
        call = (await world.call()).call
        # The agent does not hear of the outcome before somebody is killed.
        await world.mesh.signal("agent", signal.SIGSTOP)
        world.images.gate.set()
        await world.until_noted(SUCCEEDED, call.call_id)
        if service == "tool_executor":
            await world.restart("tool_executor")
            await world.mesh.signal("agent", signal.SIGCONT)
        else:
            await world.restart("agent")
        turn = await world.ended()

    _check_done(turn)
    assert [call.call_id] == world.images.effects
    assert 1 == len(world.images.requests)


@pytest.mark.parametrize("behaviour", ["hang", "make and hang"], ids=["before", "after"])
async def test_an_agent_that_died_asks_again_and_attaches_before_and_after_the_effect(behaviour: str):
    async with _world() as world:
        world.images.script = [behaviour]
        await world.begin("draw")
        await world.images.asked.wait()
        call = (await world.call()).call
        await world.restart("agent")
        world.images.gate.set()
        turn = await world.ended()

    _check_done(turn)
    assert [call.call_id] == world.images.effects
    assert 1 == len(world.images.requests)


async def test_a_runner_that_died_brings_the_files_back_and_the_model_is_told():
    async with _world(runner=True) as world:
        noted = await world.executor.run("code_interpreter", {"code": NOTED}, "call_0", session_id=world.session_id)
        await world.begin("wait")
        call = (await world.call()).call

        async def begun() -> bool:
            return any(event.step_delta.part == event_pb2.DELTA_PART_TOOL_OUTPUT for event in world.events)

        await until(begun)
        await world.restart("sandbox_runner")
        _check_asks(await world.ended())
        done = await world.decide(SKIP)

        async def runs(number: int = 0) -> str:
            code = "open('effects.txt').read()"
            call_id = f"call_after_{number}"
            ran = await world.executor.run("code_interpreter", {"code": code}, call_id, session_id=world.session_id)
            if ran.reason == error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE:
                return await runs(number + 1)
            return ran.result.content

        after = await runs()
        snapshot = (await world.executor.execution("call_0")).workspace_snapshot

    _check_done(done)
    assert noted.result.content.startswith("'call_0 '")
    assert after.startswith("'call_0 '"), after
    assert "started anew" in after
    assert call.call_id not in after
    assert snapshot.startswith("snap_")


async def test_long_code_is_finished_within_the_grace_of_an_executor_that_is_told_to_end():
    code = "import time\nprint('begun', flush=True)\ntime.sleep(1)\nprint('ended')"
    async with _world(runner=True) as world:
        running = asyncio.create_task(world.executor.run("code_interpreter", {"code": code}))

        async def dispatched() -> bool:
            try:
                return (await world.executor.execution()).HasField("dispatch_time")
            except NotFound:
                return False

        await until(dispatched)
        # Nobody waits for it any more: the process does.
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await world.mesh.stop("tool_executor")
        await world.mesh.start("tool_executor")
        await until(lambda: _answers(world.executor))
        noted = await world.executor.execution()

    assert (SUCCEEDED, "begun\nended") == (noted.state, noted.result.content)


async def _answers(executor: Executor) -> bool:
    return bool((await executor.execution()).call_id)


async def test_a_tool_that_counts_fast_is_told_of_once_in_a_while():
    rules = [
        {"after_tool": True, "text": "All is done."},
        {"contains": "count", "calls": [{"name": "counting", "arguments": {"text": "rows"}}]},
    ]
    async with (
        running_peers() as peers,
        running_mesh(rules=rules, addresses=peers.addresses) as mesh,
        mesh.client() as client,
    ):
        tool = agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="counting"))
        events = await events_of(client, await session_of(client, tools=[tool]), "count")

    told = [event.step_progress for event in events if event.HasField("step_progress")]
    (execution,) = _executions(folded(events))
    assert (1, 1000, "rows", execution.call.call_id) == (told[0].done, told[0].total, told[0].unit, told[0].call_id)
    assert len(told) < 100
    assert "counted" == execution.result.content
