"""Registered tools, by way of a `Client`: what is in `client.tools`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.client.answers import answered
from turnwire.tool_executor.v1 import tool_pb2, tool_service_pb2
from turnwire.tool_executor.v1.tool_service_pb2_grpc import ToolServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnwire.common.v1 import generation_pb2


class Tools:
    """The registry of tools, for one caller. They run within turns."""

    def __init__(self, channel: Callable[[str], Any], timeout: float) -> None:
        """Use `client.tools`."""
        self.tool_stub = ToolServiceStub(channel("tool_executor"))
        """The stub of ToolService, for what has no method here."""
        self._timeout = timeout

    async def list(self, **fields: Any) -> tool_service_pb2.ListToolsResponse:
        """Returns a page of tools; fields are those of ListToolsRequest."""
        request = tool_service_pb2.ListToolsRequest(**fields)
        return await answered(self.tool_stub.ListTools(request, timeout=self._timeout), service="tool_executor")

    async def get(self, tool_id: str) -> tool_pb2.Tool:
        """Returns a tool."""
        request = tool_service_pb2.GetToolRequest(tool_id=tool_id)
        return (await answered(self.tool_stub.GetTool(request, timeout=self._timeout), service="tool_executor")).tool

    async def register(self, tool_id: str, definition: generation_pb2.ToolDefinition, **fields: Any) -> tool_pb2.Tool:
        """Registers a tool of a provider; further fields are those of RegisterToolRequest."""
        request = tool_service_pb2.RegisterToolRequest(tool_id=tool_id, definition=definition, **fields)
        return (
            await answered(self.tool_stub.RegisterTool(request, timeout=self._timeout), service="tool_executor")
        ).tool

    async def unregister(self, tool_id: str) -> None:
        """Takes a registration back."""
        request = tool_service_pb2.UnregisterToolRequest(tool_id=tool_id)
        await answered(self.tool_stub.UnregisterTool(request, timeout=self._timeout), service="tool_executor")
