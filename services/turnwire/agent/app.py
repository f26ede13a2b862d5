"""The wiring of the agent service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.access.v1.access_service_pb2_grpc import add_AccessServiceServicer_to_server
from turnwire.agent.access import AccessServicer
from turnwire.agent.agents import Agents
from turnwire.agent.live.acceptance import Acceptance
from turnwire.agent.live.control import TurnControl
from turnwire.agent.live.models import Models
from turnwire.agent.live.registry import LiveTurns
from turnwire.agent.live.upkeep import Upkeep
from turnwire.agent.service import AgentServicer, Nouns
from turnwire.agent.sessions import Sessions
from turnwire.agent.store.schema import SCHEMA
from turnwire.agent.turn.history import History
from turnwire.agent.turns import Turns
from turnwire.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the agent service to a server, and closes on exit what it opened."""
    settings = context.settings.agent
    store = await context.open_store(SCHEMA)
    history = History(store)
    models = Models(ModelServiceStub(directory.channel("inference")))
    live = LiveTurns(
        store,
        InferenceServiceStub(directory.token_channel("inference")),
        history,
        settings,
        context.instance_id,
    )
    agents = Agents(store, models, settings.assistant_model)
    control = TurnControl(store, live)
    sessions = Sessions(store, agents, control, history)
    upkeep = Upkeep(store, live, sessions, settings)
    nouns = Nouns(
        agents=agents,
        sessions=sessions,
        turns=Turns(store, live, history),
        live=live,
        acceptance=Acceptance(store, agents, models, live),
        control=control,
        heartbeat_seconds=settings.heartbeat_seconds,
    )
    add_AgentServiceServicer_to_server(AgentServicer(nouns), server)
    add_AccessServiceServicer_to_server(AccessServicer(), server)
    await upkeep.recover()
    sweeping = asyncio.create_task(upkeep.run(), name="agent upkeep")
    draining = asyncio.create_task(_drain(context.draining, live, settings.drain_seconds), name="agent drain")
    try:
        yield
    finally:
        for task in (sweeping, draining):
            task.cancel()
        await asyncio.gather(sweeping, draining, return_exceptions=True)
        await live.close(0)
        await store.close()


async def _drain(draining: asyncio.Event, live: LiveTurns, grace_seconds: float) -> None:
    """On SIGTERM turns have a while to finish; then their streams are told to resume elsewhere."""
    await draining.wait()
    await live.close(grace_seconds)
