"""The RPCs of `turnwire.sandbox_runner.v1.SandboxRunnerService`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, assert_never

from turnwire.common.v1 import error_pb2
from turnwire.errors import InvalidArgument
from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.sandbox_runner import validation
from turnwire.sandbox_runner.pieces import FilePiece, Finished, LeftOut, Notice, Removed, Text
from turnwire.sandbox_runner.sandboxes import Started
from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2 as messages
from turnwire.sandbox_runner.v1.sandbox_runner_service_pb2_grpc import SandboxRunnerServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.runtime.settings import SandboxSettings
    from turnwire.sandbox_runner.pieces import Ending, Piece
    from turnwire.sandbox_runner.sandboxes import Sandboxes

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(messages.DESCRIPTOR.services_by_name["SandboxRunnerService"], "OpenSandbox", "WriteFiles", "RunCode")

_TOOL = "code_interpreter"

_ENDINGS: dict[Ending, messages.RunFinished.Ending.ValueType] = {
    "completed": messages.RunFinished.ENDING_COMPLETED,
    "raised": messages.RunFinished.ENDING_RAISED,
    "time": messages.RunFinished.ENDING_TIME_LIMIT,
    "cpu": messages.RunFinished.ENDING_CPU_LIMIT,
    "memory": messages.RunFinished.ENDING_MEMORY_LIMIT,
    "full": messages.RunFinished.ENDING_WORKSPACE_LIMIT,
    "died": messages.RunFinished.ENDING_DIED,
}


class SandboxRunnerServicer(SandboxRunnerServiceServicer):
    """Runs code in sandboxes. A stream that its caller leaves ends what runs."""

    def __init__(self, sandboxes: Sandboxes, settings: SandboxSettings) -> None:
        """Finds sandboxes by tenant and id in `sandboxes`."""
        self._sandboxes = sandboxes
        self._settings = settings

    async def OpenSandbox(self, request: messages.OpenSandboxRequest, context: Context) -> messages.OpenSandboxResponse:
        """Opens the sandbox of a session, or finds it open."""
        validation.check_id(request.sandbox_id)
        opened = await self._sandboxes.open((current().tenant, request.sandbox_id))
        return messages.OpenSandboxResponse(
            engine=self._sandboxes.engine, created=opened.fresh, instance_id=opened.instance_id
        )

    async def WriteFiles(
        self, request_iterator: AsyncIterator[messages.WriteFilesRequest], context: Context
    ) -> messages.WriteFilesResponse:
        """Puts files into a workspace."""
        sandbox_id = path = ""
        offset = size = count = 0
        most = self._settings.workspace_bytes
        async for request in request_iterator:
            sandbox_id = sandbox_id or request.sandbox_id
            validation.check_id(sandbox_id)
            file = request.file
            size += len(file.data)
            validation.check_file(request, expected_offset=offset if file.path == path else 0, size=size, most=most)
            key = (current().tenant, sandbox_id)
            problem = await self._sandboxes.write(key, file.path, file.offset, file.data, last=file.last)
            if problem:
                raise InvalidArgument.one("file.path", f"{file.path!r} cannot be written: {problem}")
            path, offset = ("", 0) if file.last else (file.path, file.offset + len(file.data))
            count += file.last
        validation.check_id(sandbox_id)
        return messages.WriteFilesResponse(file_count=count)

    async def RunCode(
        self, request: messages.RunCodeRequest, context: Context
    ) -> AsyncIterator[messages.RunCodeResponse]:
        """Runs code and streams what comes of it."""
        validation.check_run(request)
        seconds = self._settings.wall_seconds
        if request.HasField("limit"):
            seconds = request.limit.seconds + request.limit.nanos / 1e9
        key = (current().tenant, request.sandbox_id)
        async with aclosing(self._sandboxes.run(key, request.code, request.call_id, seconds)) as pieces:
            async for piece in pieces:
                yield _message(piece)

    async def CloseSandbox(
        self, request: messages.CloseSandboxRequest, context: Context
    ) -> messages.CloseSandboxResponse:
        """Ends a sandbox and removes its workspace."""
        validation.check_id(request.sandbox_id)
        await self._sandboxes.close_one((current().tenant, request.sandbox_id))
        return messages.CloseSandboxResponse()


def _message(piece: Started | Piece) -> messages.RunCodeResponse:
    match piece:
        case Started():
            return messages.RunCodeResponse(started=_started(piece))
        case Text():
            if piece.stream == "stdout":
                return messages.RunCodeResponse(stdout=piece.text)
            return messages.RunCodeResponse(stderr=piece.text)
        case FilePiece():
            file = messages.WorkspaceFile(path=piece.path, offset=piece.offset, data=piece.data, last=piece.last)
            return messages.RunCodeResponse(file=file)
        case Removed():
            return messages.RunCodeResponse(removed_file=piece.path)
        case LeftOut():
            return messages.RunCodeResponse(left_out_file=piece.path)
        case Notice():
            return messages.RunCodeResponse(notice=piece.text)
        case Finished():
            return messages.RunCodeResponse(finished=_finished(piece))
        case _:
            assert_never(piece)


def _started(started: Started) -> messages.RunStarted:
    notice = ""
    if started.workspace_lost:
        notice = "The sandbox was started anew: variables and files of earlier runs are gone."
    elif started.restarted:
        notice = "The interpreter was started anew: variables and imports of earlier runs are gone, files are there."
    return messages.RunStarted(restarted=started.restarted, workspace_lost=started.workspace_lost, notice=notice)


def _finished(finished: Finished) -> messages.RunFinished:
    answer = messages.RunFinished(value_repr=finished.value, ending=_ENDINGS[finished.ending])
    if finished.ending != "completed":
        timed_out = finished.ending == "time"
        answer.failure.CopyFrom(
            error_pb2.Failure(
                reason=error_pb2.ERROR_REASON_DEADLINE_EXCEEDED if timed_out else error_pb2.ERROR_REASON_TOOL_FAILED,
                message=finished.error,
                metadata={"tool": _TOOL} | ({"service": "sandbox_runner", "method": "RunCode"} if timed_out else {}),
            )
        )
    return answer
