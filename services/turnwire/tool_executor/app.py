"""The wiring of the tool executor service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.tool_executor import service
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import add_ArtifactServiceServicer_to_server
from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import add_ToolExecutorServiceServicer_to_server
from turnwire.tool_executor.v1.tool_service_pb2_grpc import add_ToolServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the tool executor service to a server."""
    add_ToolExecutorServiceServicer_to_server(service.ToolExecutorServicer(), server)
    add_ToolServiceServicer_to_server(service.ToolServicer(), server)
    add_ArtifactServiceServicer_to_server(service.ArtifactServicer(), server)
    yield
