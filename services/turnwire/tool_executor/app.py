"""The wiring of the tool executor service."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import TurnwireError
from turnwire.runtime.extras import imported
from turnwire.runtime.fetch import GuardedFetcher
from turnwire.tool_executor import journal as journals
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
from turnwire.tool_executor.workspaces import Workspaces

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory
    from turnwire.tool_executor.artifacts import Blobs
    from turnwire.tool_executor.tools.port import Provider

_log = structlog.get_logger(__name__)
_UPKEEP_SECONDS = 6 * 3600.0


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the tool executor service to a server, and closes on exit what it opened."""
    settings = context.settings
    built: list[tuple[str, Provider]] = [
        (entry.provider_type, PROVIDERS.build(entry)) for entry in settings.providers.tool_executor
    ]
    # On SQLite a service is one process: it holds the lock of the database.
    alone = settings.store.url == "sqlite"
    async with AsyncExitStack() as stack:
        store = await context.open_store(SCHEMA)
        stack.push_async_callback(store.close)
        journal = Journal(store, context.instance_id)
        await journal.hold(None if alone else settings.agent.lease_seconds)
        stack.push_async_callback(_released, journal)
        blobs = await _opened(context)
        stack.push_async_callback(blobs.close)
        artifacts = Artifacts(store, blobs, settings.artifacts)
        tools = Tools(store, [provider for _, provider in built])
        attachments = Attachments(artifacts, GuardedFetcher(allow_hosts=settings.fetch.allow_hosts))
        executions = Executions(journal, tools, artifacts, attachments, context.draining)
        add_ToolExecutorServiceServicer_to_server(ToolExecutorServicer(executions), server)
        add_ToolServiceServicer_to_server(ToolServicer(tools), server)
        add_ArtifactServiceServicer_to_server(ArtifactServicer(artifacts), server)

        async def described() -> list[inspect_service_pb2.Provider]:
            return [_described(provider, kind) for kind, provider in built]

        context.add_providers(described)
        await journal.recover()
        for _, provider in built:
            stack.push_async_callback(provider.close)
        surroundings = Surroundings(directory, artifacts, Workspaces(store), settings.fetch.allow_hosts)
        await asyncio.gather(*(provider.start(surroundings) for _, provider in built))
        await stack.enter_async_context(_beside(_keep_up(journal, artifacts), "upkeep of the tool executor"))
        if not alone:
            stack.callback(store.listen(journals.STOPS, lambda text: _heard(executions, text)))
            sharing = _share(journal, executions, settings.agent.lease_seconds, settings.agent.lease_renew_seconds)
            await stack.enter_async_context(_beside(sharing, "lease of the tool executor"))
        try:
            yield
        finally:
            # The lease is renewed until all is left.
            await executions.close(settings.agent.drain_seconds if context.draining.is_set() else 0.0)


async def _opened(context: ServiceContext) -> Blobs:
    """Opens the place where the contents of files lie."""
    settings = context.settings.artifacts
    if settings.url == "folder":
        return await FolderBlobs.open(context.data_dir / "artifacts")
    module = imported("turnwire.tool_executor.artifacts.s3", setting="artifacts.url", extra="s3")
    blobs: Blobs = await module.S3Blobs.open(settings)
    return blobs


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], name: str) -> AsyncGenerator[None]:
    """Does something in the background, until the context is left."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _released(journal: Journal) -> None:
    try:
        await journal.release()
    except TurnwireError as error:
        # Others wait for the end of the lease then.
        _log.warning("lease_not_released", reason=error.message)


async def _share(journal: Journal, executions: Executions, seconds: float, renew_seconds: float) -> None:
    """Renews the lease of this process, and does what replicas have left to it: calls without a process, and stops."""
    while True:
        await asyncio.sleep(renew_seconds)
        try:
            await journal.hold(seconds)
            await journal.recover()
            for key in await journal.to_stop():
                executions.stop(key)
        except TurnwireError as error:
            _log.warning("lease_not_renewed", reason=error.message)
        except Exception:
            # Whatever it is: without a lease others take what runs here for lost.
            _log.exception("lease_defect")


def _heard(executions: Executions, text: str) -> None:
    tenant, turn_id, call_id = json.loads(text)
    executions.stop((tenant, turn_id, call_id))


async def _keep_up(journal: Journal, artifacts: Artifacts) -> None:
    """Removes what nobody can ask for any more."""
    while True:
        try:
            await journal.forget()
            await artifacts.sweep()
        except (TurnwireError, OSError) as error:
            _log.warning("upkeep_failed", reason=str(error))
        except Exception:
            _log.exception("upkeep_defect")
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
