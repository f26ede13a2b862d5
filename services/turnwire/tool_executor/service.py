"""The RPCs of `turnwire.tool_executor.v1.ToolExecutorService`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from turnwire.errors import PermissionDenied
from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.tool_executor import validation
from turnwire.tool_executor.v1 import tool_executor_service_pb2 as messages
from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.tool_executor.executions import Executions

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(
    messages.DESCRIPTOR.services_by_name["ToolExecutorService"], "ExecuteTool", "CancelExecution", "ResolveExecution"
)


class ToolExecutorServicer(ToolExecutorServiceServicer):
    """Executes tools. A stream that its caller leaves stops nothing: `CancelExecution` does."""

    def __init__(self, executions: Executions) -> None:
        """Works on `executions`."""
        self._executions = executions

    async def ExecuteTool(
        self, request: messages.ExecuteToolRequest, context: Context
    ) -> AsyncIterator[messages.ExecuteToolResponse]:
        """Executes a call, attaches to it, or returns its outcome."""
        validation.check_execute(request)
        _check_owner(request.owner_epoch)
        async with aclosing(self._executions.execute(current().tenant, request)) as responses:
            async for response in responses:
                yield response

    async def GetExecution(
        self, request: messages.GetExecutionRequest, context: Context
    ) -> messages.GetExecutionResponse:
        """Gets a call as the journal has it."""
        validation.check_call(request.turn_id, request.call_id)
        execution = await self._executions.get((current().tenant, request.turn_id, request.call_id))
        return messages.GetExecutionResponse(execution=execution)

    async def CancelExecution(
        self, request: messages.CancelExecutionRequest, context: Context
    ) -> messages.CancelExecutionResponse:
        """Stops a call."""
        validation.check_call(request.turn_id, request.call_id, request.owner_epoch)
        _check_owner(request.owner_epoch)
        key = (current().tenant, request.turn_id, request.call_id)
        execution = await self._executions.cancel(key, request.owner_epoch)
        return messages.CancelExecutionResponse(execution=execution)

    async def ResolveExecution(
        self, request: messages.ResolveExecutionRequest, context: Context
    ) -> messages.ResolveExecutionResponse:
        """Decides about a call whose outcome was lost."""
        validation.check_resolve(request)
        key = (current().tenant, request.turn_id, request.call_id)
        result = request.result if request.resolution == messages.RESOLUTION_PROVIDE else None
        return messages.ResolveExecutionResponse(execution=await self._executions.resolve(key, result))


def _check_owner(owner_epoch: int) -> None:
    """Only the mesh says which owner of a turn it is: anybody else could shut the turn's real owner out."""
    caller = current()
    if owner_epoch and caller.kind == "user":
        raise PermissionDenied(
            f"{caller.subject} is no service of the mesh and owns no turn: leave `owner_epoch` out.",
            metadata={"subject": caller.subject},
        )
