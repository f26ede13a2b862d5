"""An agent service that says exactly what a test tells it to: what no sound service would do."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.agent.v1 import agent_service_pb2, event_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from turnwire.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence


class Hang:
    """In place of an event: nothing more comes, and the stream stays open."""


class Abort:
    """In place of an event: the stream ends with this status, as a proxy would make it, without details."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code


Said = event_pb2.StepEvent | Hang | Abort


class ToldAgent(AgentServiceServicer):
    """Answers stream after stream with what it is given for each."""

    def __init__(self, streams: Sequence[Sequence[Said]]) -> None:
        self._streams = list(streams)
        self.run: list[agent_service_pb2.RunTurnRequest] = []
        self.watched: list[agent_service_pb2.WatchTurnRequest] = []
        self.request_ids: list[str] = []
        self.open = 0
        """Streams that are open now."""

    async def RunTurn(
        self, request: agent_service_pb2.RunTurnRequest, context: Any
    ) -> AsyncIterator[event_pb2.StepEvent]:
        self.run.append(request)
        async for event in self._told(context):
            yield event

    async def WatchTurn(
        self, request: agent_service_pb2.WatchTurnRequest, context: Any
    ) -> AsyncIterator[event_pb2.StepEvent]:
        self.watched.append(request)
        async for event in self._told(context):
            yield event

    async def _told(self, context: Any) -> AsyncIterator[event_pb2.StepEvent]:
        metadata = dict(context.invocation_metadata())
        self.request_ids.append(metadata["turnwire-request-id"])
        # The last one again and again.
        said = self._streams.pop(0) if len(self._streams) > 1 else self._streams[0]
        self.open += 1
        try:
            for each in said:
                if isinstance(each, Hang):
                    await asyncio.Event().wait()
                elif isinstance(each, Abort):
                    await context.abort(each.code, "made by the test")
                else:
                    yield each
        finally:
            self.open -= 1


@asynccontextmanager
async def told(*streams: Sequence[Said]) -> AsyncGenerator[tuple[ToldAgent, Client]]:
    """Gives such a service and a client of it."""
    agent = ToldAgent(streams)  # pyright: ignore[reportAbstractUsage] - the other methods answer UNIMPLEMENTED
    server = grpc.aio.server()
    add_AgentServiceServicer_to_server(agent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client.connect(f"127.0.0.1:{port}") as client:
            yield agent, client
    finally:
        await server.stop(None)


def started(sequence: int = 1) -> event_pb2.StepEvent:
    """The first event of a turn."""
    return _event(sequence, turn_started=event_pb2.TurnStarted(session_id="sess_1", ordinal=1))


def progress(sequence: int, first: int = 0) -> event_pb2.StepEvent:
    """An event that changes nothing."""
    event = _event(sequence, step_progress=event_pb2.StepProgress(done=sequence))
    event.first_sequence = first or sequence
    return event


def heartbeat(sequence: int) -> event_pb2.StepEvent:
    """A sign of life."""
    return _event(sequence, heartbeat=event_pb2.Heartbeat())


def completed(sequence: int) -> event_pb2.StepEvent:
    """The last event of a turn."""
    return _event(sequence, turn_completed=event_pb2.TurnCompleted())


def _event(sequence: int, **payload: Any) -> event_pb2.StepEvent:
    return event_pb2.StepEvent(first_sequence=sequence, sequence=sequence, turn_id="turn_1", **payload)
