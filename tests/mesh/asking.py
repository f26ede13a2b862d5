"""What the mesh tests do again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from turnwire.agent.v1 import agent_pb2, agent_service_pb2, event_pb2, turn_pb2
from turnwire.client.client import Client, user_message
from turnwire.common.v1 import generation_pb2
from turnwire.errors import Unavailable
from turnwire.fold import TERMINAL_PAYLOADS, TurnFold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


def weather_tool(name: str = "get_weather") -> agent_pb2.AgentTool:
    """Returns a function of the caller."""
    schema = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'
    definition = generation_pb2.ToolDefinition(name=name, description="The weather.", parameters_json_schema=schema)
    return agent_pb2.AgentTool(function=agent_pb2.FunctionTool(definition=definition))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a state of the mesh; services that are away are asked again."""
    while True:
        try:
            if await condition():
                return
        except Unavailable:
            pass
        await asyncio.sleep(0.02)


async def until_up(client: Client, *services: str) -> None:
    """Waits until a client reaches services again."""

    async def answers(service: str) -> bool:
        return bool((await client.server_info(service)).version)

    for service in services or ("agent", "inference"):
        await until(lambda service=service: answers(service))


async def session_of(client: Client, **config: Any) -> str:
    """Returns a session with a new agent on the scripted model."""
    agent = await client.create_agent(agent_pb2.AgentConfig(model="scripted", **config))
    return (await client.create_session(agent.agent_id)).session_id


async def events_of(client: Client, session_id: str, text: str, turn_id: str = "") -> list[event_pb2.StepEvent]:
    """Runs a turn over one plain stream and returns its events."""
    request = agent_service_pb2.RunTurnRequest(session_id=session_id, turn_id=turn_id, messages=[user_message(text)])
    return [event async for event in client.agent_stub.RunTurn(request, timeout=60)]


def folded(events: Sequence[event_pb2.StepEvent]) -> turn_pb2.Turn:
    """Returns the turn that events fold to."""
    fold = TurnFold()
    for event in events:
        fold.apply(event)
    return fold.turn


def check_log(events: Sequence[event_pb2.StepEvent]) -> None:
    """Asserts what every log promises: ranges without a gap, one terminal event and last, steps under one id."""
    expected = 1
    open_steps: set[str] = set()
    for event in events:
        kind = event.WhichOneof("payload")
        if kind == "heartbeat":
            continue
        assert expected == event.first_sequence, f"a gap before {event}"
        expected = event.sequence + 1
        if kind == "step_started":
            assert event.step_id not in open_steps
            open_steps.add(event.step_id)
        elif event.step_id:
            assert event.step_id in open_steps, f"{kind} of a step that never started"
    terminal = [event for event in events if event.WhichOneof("payload") in TERMINAL_PAYLOADS]
    assert len(terminal) <= 1
    if terminal:
        assert events[-1] is terminal[0]
