"""The wiring of the agent service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from turnwire.access.v1.access_service_pb2_grpc import add_AccessServiceServicer_to_server
from turnwire.agent.access import AccessServicer
from turnwire.agent.agents import Agents
from turnwire.agent.live.acceptance import Acceptance
from turnwire.agent.live.address import own_address
from turnwire.agent.live.control import TurnControl
from turnwire.agent.live.following import Following
from turnwire.agent.live.lease import Lease
from turnwire.agent.live.named import Named
from turnwire.agent.live.peers import Peers
from turnwire.agent.live.registry import LiveTurns
from turnwire.agent.live.session_queue import SessionQueue
from turnwire.agent.live.takeover import Beginning, Takeover
from turnwire.agent.live.unbroken import Unbroken
from turnwire.agent.live.upkeep import Upkeep
from turnwire.agent.owner_service import TurnOwnerServicer
from turnwire.agent.service import AgentServicer, Nouns
from turnwire.agent.sessions import Sessions
from turnwire.agent.store.schema import SCHEMA
from turnwire.agent.transfer import Transfer
from turnwire.agent.turn.history import History
from turnwire.agent.turn.workers import Stubs
from turnwire.agent.turns import Turns
from turnwire.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from turnwire.agent.v1.turn_owner_service_pb2_grpc import add_TurnOwnerServiceServicer_to_server
from turnwire.errors import StoreUnavailable
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub
from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceStub
from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceStub
from turnwire.safety.v1.shield_service_pb2_grpc import ShieldServiceStub
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceStub
from turnwire.tool_executor.v1.tool_service_pb2_grpc import ToolServiceStub

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
    named = Named(
        models=ModelServiceStub(directory.channel("inference")),
        shields=ShieldServiceStub(directory.channel("safety")),
        banks=MemoryBankServiceStub(directory.channel("memory")),
        tools=ToolServiceStub(directory.channel("tool_executor")),
    )
    stubs = Stubs(
        inference=InferenceServiceStub(directory.token_channel("inference")),
        safety=SafetyServiceStub(directory.channel("safety")),
        memory=MemoryServiceStub(directory.channel("memory")),
        banks=named.banks,
        tool_executor=ToolExecutorServiceStub(directory.token_channel("tool_executor")),
    )
    lease = Lease(
        store,
        settings,
        instance_id=context.instance_id,
        address=await own_address(context.settings),
        exclusive=context.settings.store.url == "sqlite",
    )
    queue = SessionQueue(settings, lease)
    live = LiveTurns(store, stubs, history, settings, lease, queue)
    unbroken = Unbroken()
    takeover = Takeover(live, unbroken)
    peers = Peers(directory)
    following = Following(store, live, takeover, peers)
    agents = Agents(store, named, settings.assistant)
    control = TurnControl(store, live, peers, unbroken)
    sessions = Sessions(store, agents, control, history, named)
    upkeep = Upkeep(store, live, takeover, control, queue, sessions, settings, peers)
    acceptance = Acceptance(
        store, agents, named, live, control, ArtifactServiceStub(directory.channel("tool_executor")), unbroken
    )
    nouns = Nouns(
        agents=agents,
        sessions=sessions,
        turns=Turns(store, live, history),
        live=live,
        acceptance=acceptance,
        control=control,
        transfer=Transfer(store, agents, history),
        heartbeat_seconds=settings.heartbeat_seconds,
    )
    add_AgentServiceServicer_to_server(AgentServicer(nouns), server)
    add_TurnOwnerServiceServicer_to_server(TurnOwnerServicer(live, control), server)
    add_AccessServiceServicer_to_server(AccessServicer(), server)
    live.on_watched = following.begin
    beginning = Beginning(takeover, queue)
    await lease.take()
    await upkeep.recover()
    tasks = [
        asyncio.create_task(lease.run(lost=live.lose_all, lit_again=live.show_all), name="agent lease"),
        asyncio.create_task(upkeep.run(), name="agent upkeep"),
        asyncio.create_task(_drain(context.draining, live, queue, settings.drain_seconds), name="agent drain"),
    ]
    try:
        yield
    finally:
        queue.closed = True
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        await unbroken.close()
        await acceptance.close()
        await beginning.close()
        await live.close()
        following.close()
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        with suppress(StoreUnavailable):
            await lease.end()
        await store.close()


async def _drain(draining: asyncio.Event, live: LiveTurns, queue: SessionQueue, grace_seconds: float) -> None:
    """On SIGTERM turns are let go of; their streams are told to resume elsewhere."""
    await draining.wait()
    queue.closed = True
    await live.drain(grace_seconds)
