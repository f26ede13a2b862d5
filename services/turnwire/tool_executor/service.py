"""The RPCs of the tool executor service.

The execution of tools comes with a later version: every method answers UNIMPLEMENTED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.unimplemented import unimplemented
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceServicer
from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceServicer
from turnwire.tool_executor.v1.tool_service_pb2_grpc import ToolServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.tool_executor.v1 import artifact_service_pb2, tool_executor_service_pb2, tool_service_pb2

    Context = grpc.aio.ServicerContext[Any, Any]

_INSTEAD = "Functions of the caller work: describe them in the agent and answer with SubmitTurnInput."


class ToolExecutorServicer(ToolExecutorServiceServicer):
    """Answers that this version does not serve `ToolExecutorService`."""

    @unimplemented("ToolExecutorService/ExecuteTool", _INSTEAD)
    def ExecuteTool(
        self, request: tool_executor_service_pb2.ExecuteToolRequest, context: Context
    ) -> AsyncIterator[tool_executor_service_pb2.ExecuteToolResponse]:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ToolExecutorService/GetExecution", _INSTEAD)
    async def GetExecution(
        self, request: tool_executor_service_pb2.GetExecutionRequest, context: Context
    ) -> tool_executor_service_pb2.GetExecutionResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ToolExecutorService/CancelExecution", _INSTEAD)
    async def CancelExecution(
        self, request: tool_executor_service_pb2.CancelExecutionRequest, context: Context
    ) -> tool_executor_service_pb2.CancelExecutionResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ToolExecutorService/ResolveExecution", _INSTEAD)
    async def ResolveExecution(
        self, request: tool_executor_service_pb2.ResolveExecutionRequest, context: Context
    ) -> tool_executor_service_pb2.ResolveExecutionResponse:
        """Is not served yet."""
        raise NotImplementedError


class ToolServicer(ToolServiceServicer):
    """Answers that this version does not serve `ToolService`."""

    @unimplemented("ToolService/ListTools", _INSTEAD)
    async def ListTools(
        self, request: tool_service_pb2.ListToolsRequest, context: Context
    ) -> tool_service_pb2.ListToolsResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ToolService/GetTool", _INSTEAD)
    async def GetTool(
        self, request: tool_service_pb2.GetToolRequest, context: Context
    ) -> tool_service_pb2.GetToolResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ToolService/RegisterTool", _INSTEAD)
    async def RegisterTool(
        self, request: tool_service_pb2.RegisterToolRequest, context: Context
    ) -> tool_service_pb2.RegisterToolResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ToolService/UnregisterTool", _INSTEAD)
    async def UnregisterTool(
        self, request: tool_service_pb2.UnregisterToolRequest, context: Context
    ) -> tool_service_pb2.UnregisterToolResponse:
        """Is not served yet."""
        raise NotImplementedError


class ArtifactServicer(ArtifactServiceServicer):
    """Answers that this version does not serve `ArtifactService`."""

    @unimplemented("ArtifactService/UploadArtifact", _INSTEAD)
    async def UploadArtifact(
        self, request_iterator: AsyncIterator[artifact_service_pb2.UploadArtifactRequest], context: Context
    ) -> artifact_service_pb2.UploadArtifactResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ArtifactService/DownloadArtifact", _INSTEAD)
    def DownloadArtifact(
        self, request: artifact_service_pb2.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[artifact_service_pb2.DownloadArtifactResponse]:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ArtifactService/GetArtifact", _INSTEAD)
    async def GetArtifact(
        self, request: artifact_service_pb2.GetArtifactRequest, context: Context
    ) -> artifact_service_pb2.GetArtifactResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ArtifactService/ListArtifacts", _INSTEAD)
    async def ListArtifacts(
        self, request: artifact_service_pb2.ListArtifactsRequest, context: Context
    ) -> artifact_service_pb2.ListArtifactsResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ArtifactService/DeleteArtifact", _INSTEAD)
    async def DeleteArtifact(
        self, request: artifact_service_pb2.DeleteArtifactRequest, context: Context
    ) -> artifact_service_pb2.DeleteArtifactResponse:
        """Is not served yet."""
        raise NotImplementedError
