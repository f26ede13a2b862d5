"""The wiring of the safety service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.safety import service
from turnwire.safety.v1.safety_service_pb2_grpc import add_SafetyServiceServicer_to_server
from turnwire.safety.v1.shield_service_pb2_grpc import add_ShieldServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the safety service to a server."""
    add_SafetyServiceServicer_to_server(service.SafetyServicer(), server)
    add_ShieldServiceServicer_to_server(service.ShieldServicer(), server)
    yield
