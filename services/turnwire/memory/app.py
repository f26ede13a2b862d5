"""The wiring of the memory service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.memory import service
from turnwire.memory.v1.memory_bank_service_pb2_grpc import add_MemoryBankServiceServicer_to_server
from turnwire.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the memory service to a server."""
    add_MemoryServiceServicer_to_server(service.MemoryServicer(), server)
    add_MemoryBankServiceServicer_to_server(service.MemoryBankServicer(), server)
    yield
