"""The wiring of the sandbox runner service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.sandbox_runner import service
from turnwire.sandbox_runner.v1.sandbox_runner_service_pb2_grpc import add_SandboxRunnerServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the sandbox runner service to a server."""
    add_SandboxRunnerServiceServicer_to_server(service.SandboxRunnerServicer(), server)
    yield
