"""The RPCs of `turnwire.tool_executor.v1.ToolService`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.identity import current
from turnwire.runtime.paging import decode_position, encode_position, page_size
from turnwire.tool_executor import validation
from turnwire.tool_executor.v1 import tool_service_pb2 as messages
from turnwire.tool_executor.v1.tool_service_pb2_grpc import ToolServiceServicer

if TYPE_CHECKING:
    import grpc

    from turnwire.tool_executor.registry import Tools

    Context = grpc.aio.ServicerContext[Any, Any]


class ToolServicer(ToolServiceServicer):
    """Serves the registry of tools."""

    def __init__(self, tools: Tools) -> None:
        """Works on `tools`."""
        self._tools = tools

    async def ListTools(self, request: messages.ListToolsRequest, context: Context) -> messages.ListToolsResponse:
        """Lists the tools, by id."""
        limit = page_size(request.page_size)
        last = decode_position(request.page_token, ("", ""))
        tools = [tool for tool in await self._tools.all(current().tenant) if (tool.tool_id, tool.provider_id) > last]
        page = tools[:limit]
        token = encode_position(page[-1].tool_id, page[-1].provider_id) if len(tools) > limit else ""
        return messages.ListToolsResponse(tools=page, next_page_token=token)

    async def GetTool(self, request: messages.GetToolRequest, context: Context) -> messages.GetToolResponse:
        """Gets one tool."""
        validation.check_name("tool_id", request.tool_id)
        found = await self._tools.resolve(current().tenant, request.tool_id)
        return messages.GetToolResponse(tool=found.tool)

    async def RegisterTool(
        self, request: messages.RegisterToolRequest, context: Context
    ) -> messages.RegisterToolResponse:
        """Registers a tool of a provider."""
        validation.check_register(request)
        return messages.RegisterToolResponse(tool=await self._tools.register(current().tenant, request))

    async def UnregisterTool(
        self, request: messages.UnregisterToolRequest, context: Context
    ) -> messages.UnregisterToolResponse:
        """Takes a registration back."""
        validation.check_name("tool_id", request.tool_id)
        await self._tools.unregister(current().tenant, request.tool_id)
        return messages.UnregisterToolResponse()
