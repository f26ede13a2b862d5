"""The wiring of the safety service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.common.v1 import inspect_service_pb2
from turnwire.safety.registry import Shields
from turnwire.safety.service import SafetyServicer
from turnwire.safety.shield_service import ShieldServicer
from turnwire.safety.shields import PROVIDERS
from turnwire.safety.store.schema import SCHEMA
from turnwire.safety.v1.safety_service_pb2_grpc import add_SafetyServiceServicer_to_server
from turnwire.safety.v1.shield_service_pb2_grpc import add_ShieldServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory
    from turnwire.safety.shields.port import Provider


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the safety service to a server, and closes on exit what it opened."""
    built: list[tuple[str, Provider]] = [
        (entry.provider_type, PROVIDERS.build(entry)) for entry in context.settings.providers.safety
    ]
    store = await context.open_store(SCHEMA)
    shields = Shields(store, [provider for _, provider in built])
    add_SafetyServiceServicer_to_server(SafetyServicer(shields), server)
    add_ShieldServiceServicer_to_server(ShieldServicer(shields), server)

    async def described() -> list[inspect_service_pb2.Provider]:
        return [_described(provider, kind) for kind, provider in built]

    context.add_providers(described)
    try:
        await asyncio.gather(*(provider.start(directory) for _, provider in built))
        yield
    finally:
        await asyncio.gather(*(provider.close() for _, provider in built), return_exceptions=True)
        await store.close()


def _described(provider: Provider, provider_type: str) -> inspect_service_pb2.Provider:
    state, detail = provider.state()
    return inspect_service_pb2.Provider(
        provider_id=provider.provider_id,
        provider_type=provider_type,
        service="safety",
        state=state,
        detail=detail,
        serves=[shield.shield_id for shield in provider.shields()],
    )
