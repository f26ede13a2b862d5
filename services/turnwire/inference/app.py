"""The wiring of the inference service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import TurnwireError
from turnwire.inference.model_service import ModelServicer
from turnwire.inference.providers import PROVIDERS
from turnwire.inference.registry import Models
from turnwire.inference.service import InferenceServicer
from turnwire.inference.store.schema import SCHEMA
from turnwire.inference.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from turnwire.inference.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.inference.providers.port import Provider
    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the inference service to a server, and closes on exit what it opened."""
    built = [(entry.provider_type, PROVIDERS.build(entry)) for entry in context.settings.providers.inference]
    store = await context.open_store(SCHEMA)
    models = Models(store, [provider for _, provider in built])
    add_InferenceServiceServicer_to_server(InferenceServicer(models), server)
    add_ModelServiceServicer_to_server(ModelServicer(models), server)

    async def described() -> list[inspect_service_pb2.Provider]:
        return [await _described(provider, kind) for kind, provider in built]

    context.add_providers(described)
    try:
        await asyncio.gather(*(provider.start() for _, provider in built))
        yield
    finally:
        await asyncio.gather(*(provider.close() for _, provider in built), return_exceptions=True)
        await store.close()


async def _described(provider: Provider, provider_type: str) -> inspect_service_pb2.Provider:
    serves: list[str] = []
    if provider.state()[0] == inspect_service_pb2.Provider.STATE_READY:
        # A provider may learn by being asked that it is not ready.
        with suppress(TurnwireError):
            serves = [model.provider_model_id for model in await provider.models()]
    state, detail = provider.state()
    return inspect_service_pb2.Provider(
        provider_id=provider.provider_id,
        provider_type=provider_type,
        service="inference",
        state=state,
        detail=detail,
        serves=serves,
    )
