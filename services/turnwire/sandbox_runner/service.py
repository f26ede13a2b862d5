"""The RPCs of the sandbox runner service.

Running model-written code comes with a later version: every method answers UNIMPLEMENTED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.unimplemented import unimplemented
from turnwire.sandbox_runner.v1.sandbox_runner_service_pb2_grpc import SandboxRunnerServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2

    Context = grpc.aio.ServicerContext[Any, Any]

_INSTEAD = "Functions of the caller work instead."


class SandboxRunnerServicer(SandboxRunnerServiceServicer):
    """Answers that this version does not serve `SandboxRunnerService`."""

    @unimplemented("SandboxRunnerService/OpenSandbox", _INSTEAD)
    async def OpenSandbox(
        self, request: sandbox_runner_service_pb2.OpenSandboxRequest, context: Context
    ) -> sandbox_runner_service_pb2.OpenSandboxResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("SandboxRunnerService/RunCode", _INSTEAD)
    def RunCode(
        self, request: sandbox_runner_service_pb2.RunCodeRequest, context: Context
    ) -> AsyncIterator[sandbox_runner_service_pb2.RunCodeResponse]:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("SandboxRunnerService/CloseSandbox", _INSTEAD)
    async def CloseSandbox(
        self, request: sandbox_runner_service_pb2.CloseSandboxRequest, context: Context
    ) -> sandbox_runner_service_pb2.CloseSandboxResponse:
        """Is not served yet."""
        raise NotImplementedError
