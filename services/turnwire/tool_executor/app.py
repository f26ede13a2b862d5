"""The wiring of the tool executor service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import TurnwireError
from turnwire.runtime.fetch import GuardedFetcher
from turnwire.tool_executor.artifact_service import ArtifactServicer
from turnwire.tool_executor.artifacts import Artifacts, FolderBlobs
from turnwire.tool_executor.attachments import Attachments
from turnwire.tool_executor.executions import Executions
from turnwire.tool_executor.journal import Journal
from turnwire.tool_executor.registry import Tools
from turnwire.tool_executor.service import ToolExecutorServicer
from turnwire.tool_executor.store.schema import SCHEMA
from turnwire.tool_executor.tool_service import ToolServicer
from turnwire.tool_executor.tools import PROVIDERS
from turnwire.tool_executor.tools.port import Surroundings
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import add_ArtifactServiceServicer_to_server
from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import add_ToolExecutorServiceServicer_to_server
from turnwire.tool_executor.v1.tool_service_pb2_grpc import add_ToolServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory
    from turnwire.tool_executor.tools.port import Provider

_log = structlog.get_logger(__name__)
_UPKEEP_SECONDS = 6 * 3600.0


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the tool executor service to a server, and closes on exit what it opened."""
    built: list[tuple[str, Provider]] = [
        (entry.provider_type, PROVIDERS.build(entry)) for entry in context.settings.providers.tool_executor
    ]
    store = await context.open_store(SCHEMA)
    executions: Executions | None = None
    upkeep: asyncio.Task[None] | None = None
    try:
        artifacts = Artifacts(store, await FolderBlobs.open(context.data_dir / "artifacts"), context.settings.artifacts)
        tools = Tools(store, [provider for _, provider in built])
        journal = Journal(store, context.instance_id)
        executions = Executions(journal, tools, artifacts, Attachments(artifacts, GuardedFetcher()), context.draining)
        add_ToolExecutorServiceServicer_to_server(ToolExecutorServicer(executions), server)
        add_ToolServiceServicer_to_server(ToolServicer(tools), server)
        add_ArtifactServiceServicer_to_server(ArtifactServicer(artifacts), server)

        async def described() -> list[inspect_service_pb2.Provider]:
            return [_described(provider, kind) for kind, provider in built]

        context.add_providers(described)
        await journal.recover()
        surroundings = Surroundings(directory, artifacts)
        await asyncio.gather(*(provider.start(surroundings) for _, provider in built))
        upkeep = asyncio.create_task(_keep_up(journal, artifacts), name="upkeep of the tool executor")
        yield
    finally:
        if upkeep is not None:
            upkeep.cancel()
            with suppress(asyncio.CancelledError):
                await upkeep
        if executions is not None:
            await executions.close()
        await asyncio.gather(*(provider.close() for _, provider in built), return_exceptions=True)
        await store.close()


async def _keep_up(journal: Journal, artifacts: Artifacts) -> None:
    """Removes what nobody can ask for any more."""
    while True:
        try:
            await artifacts.sweep()
            await journal.forget()
        except (TurnwireError, OSError) as error:
            _log.warning("upkeep_failed", reason=str(error))
        await asyncio.sleep(_UPKEEP_SECONDS)


def _described(provider: Provider, provider_type: str) -> inspect_service_pb2.Provider:
    state, detail = provider.state()
    return inspect_service_pb2.Provider(
        provider_id=provider.provider_id,
        provider_type=provider_type,
        service="tool_executor",
        state=state,
        detail=detail,
        serves=[tool.tool_id for tool in provider.tools()],
    )
