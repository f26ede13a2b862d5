"""The wiring of the sandbox runner service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import inspect_service_pb2
from turnwire.sandbox_runner import libraries
from turnwire.sandbox_runner.choosing import choose
from turnwire.sandbox_runner.engines.port import Limits, Site
from turnwire.sandbox_runner.home import Home
from turnwire.sandbox_runner.sandboxes import Sandboxes
from turnwire.sandbox_runner.service import SandboxRunnerServicer
from turnwire.sandbox_runner.v1.sandbox_runner_service_pb2_grpc import add_SandboxRunnerServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory
    from turnwire.runtime.settings import SandboxSettings

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the sandbox runner service to a server, and ends all sandboxes on exit.

    Raises:
        IsolationUnavailable: nothing isolates model-written code here; the service does not start then.
    """
    async with opened(context.settings.sandbox) as sandboxes:
        add_SandboxRunnerServiceServicer_to_server(SandboxRunnerServicer(sandboxes, context.settings.sandbox), server)

        async def described() -> list[inspect_service_pb2.Provider]:
            return [
                inspect_service_pb2.Provider(
                    provider_id=sandboxes.engine,
                    provider_type=f"inline::{sandboxes.engine}",
                    service=context.name,
                    state=inspect_service_pb2.Provider.STATE_READY,
                    detail=f"{sandboxes.count} sandboxes open",
                )
            ]

        context.add_providers(described)
        yield


@asynccontextmanager
async def opened(settings: SandboxSettings) -> AsyncGenerator[Sandboxes]:
    """Gives sandboxes on the strongest engine that works here; all are ended on exit.

    Raises:
        IsolationUnavailable: there is none.
    """
    home = await asyncio.to_thread(Home.make)
    folder = home.folder
    try:
        site = await asyncio.to_thread(_site, settings, folder)
        engine, first = await choose(settings, site)
        _log.info("sandbox_engine", engine=engine.name, user=first.uid)
        if not settings.warm:
            await first.close()
        sandboxes = Sandboxes(settings, site, engine, [first] if settings.warm else [])
        try:
            sandboxes.start()
            yield sandboxes
        finally:
            await sandboxes.close()
    finally:
        await asyncio.to_thread(home.remove)


def _site(settings: SandboxSettings, folder: Path) -> Site:
    found = libraries.find(settings.packages)
    if found.missing:
        _log.warning("sandbox_packages_missing", packages=list(found.missing))
    limits = Limits(
        memory_bytes=settings.memory_bytes,
        cpu_seconds=settings.cpu_seconds,
        processes=settings.processes,
        workspace_bytes=settings.workspace_bytes,
        workspace_files=settings.workspace_files,
    )
    return Site(folder, libraries.interior(folder), found, limits, tuple(settings.preload))
