"""What the tests of the tool executor service call it with."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from tests.fakes import images_server, search_servers
from turnwire.common.v1 import message_pb2
from turnwire.errors import TurnwireError, from_rpc_error
from turnwire.testing.mesh import running_mesh
from turnwire.tool_executor.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    execution_pb2,
    tool_executor_service_pb2,
    tool_executor_service_pb2_grpc,
    tool_service_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from tests.fakes.images_server import FakeImages
    from tests.fakes.search_servers import FakeSearch
    from turnwire.testing.mesh import RunningMesh

PREPARED = execution_pb2.EXECUTION_STATE_PREPARED
DISPATCHED = execution_pb2.EXECUTION_STATE_DISPATCHED
SUCCEEDED = execution_pb2.EXECUTION_STATE_SUCCEEDED
FAILED = execution_pb2.EXECUTION_STATE_FAILED
CANCELLED = execution_pb2.EXECUTION_STATE_CANCELLED
UNKNOWN = execution_pb2.EXECUTION_STATE_OUTCOME_UNKNOWN

CODE = {"provider_id": "code", "provider_type": "inline::code-interpreter"}
SECRET = {"mesh_secret": "the secret of the mesh of a test"}
KEYS = {"alice": "key-of-alice-000000", "bob": "key-of-bob-00000000"}
TWO_TENANTS: dict[str, Any] = {
    "api_keys": [
        {"name": name, "key": key, "tenant": f"tenant-{name}", "roles": ["admin"]} for name, key in KEYS.items()
    ],
    **SECRET,
}


@dataclass
class Ran:
    """All that an execution gave back."""

    states: list[execution_pb2.ExecutionState.ValueType] = field(default_factory=list[Any])
    output: str = ""
    pieces: int = 0
    result: message_pb2.ToolResult = field(default_factory=message_pb2.ToolResult)

    def take(self, response: tool_executor_service_pb2.ExecuteToolResponse) -> None:
        """Takes a piece; offsets join without a gap."""
        match response.WhichOneof("payload"):
            case "progress":
                self.states.append(response.progress.state)
            case "output":
                assert len(self.output.encode()) == response.output.offset
                self.output += response.output.text
                self.pieces += 1
            case _:
                self.result = response.result

    @property
    def reason(self) -> int:
        """Why it failed; 0 when it did not."""
        return self.result.failure.reason


class Executor:
    """The tool executor service of a mesh, called as a caller does."""

    def __init__(self, channel: grpc.aio.Channel, key: str = "") -> None:
        """Calls with a key, if one is given."""
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        # A person or a program owns no turn.
        self._epoch = 0 if key else 1
        self.executor: Any = tool_executor_service_pb2_grpc.ToolExecutorServiceStub(channel)
        self.tools: Any = tool_service_pb2_grpc.ToolServiceStub(channel)
        self.artifacts: Any = artifact_service_pb2_grpc.ArtifactServiceStub(channel)

    def stream(self, tool: str, arguments: Any, call_id: str, **more: Any) -> Any:
        """Asks for an execution; the stream of its pieces."""
        given: dict[str, Any] = {"turn_id": "turn_1", "session_id": "sess_1", "owner_epoch": self._epoch} | more
        seconds = given.pop("timeout", 60)
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = message_pb2.ToolCall(call_id=call_id, name=tool, arguments_json=text, retry_of=given.pop("retry_of", ""))
        request = tool_executor_service_pb2.ExecuteToolRequest(call=call, **given)
        return self.executor.ExecuteTool(request, metadata=self._metadata, timeout=seconds)

    async def run(self, tool: str, arguments: Any, call_id: str = "call_1", **more: Any) -> Ran:
        """Executes a call to its end.

        Raises:
            TurnwireError: it was refused, or the stream was cut.
        """
        ran = Ran()
        try:
            async for response in self.stream(tool, arguments, call_id, **more):
                ran.take(response)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="tool_executor") from error
        assert ran.result.call_id == call_id
        return ran

    async def call(self, name: str, request: Any) -> Any:
        """Calls a unary method of any of the services.

        Raises:
            TurnwireError: it was refused.
        """
        stub = next(each for each in (self.executor, self.tools, self.artifacts) if hasattr(each, name))
        try:
            return await getattr(stub, name)(request, metadata=self._metadata, timeout=30)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="tool_executor") from error

    async def execution(self, call_id: str = "call_1", turn_id: str = "turn_1") -> execution_pb2.Execution:
        """Returns a call as the journal has it."""
        request = tool_executor_service_pb2.GetExecutionRequest(turn_id=turn_id, call_id=call_id)
        return (await self.call("GetExecution", request)).execution

    async def cancel(self, call_id: str = "call_1", epoch: int = 1, turn_id: str = "turn_1") -> execution_pb2.Execution:
        """Stops a call."""
        request = tool_executor_service_pb2.CancelExecutionRequest(turn_id=turn_id, call_id=call_id, owner_epoch=epoch)
        return (await self.call("CancelExecution", request)).execution

    async def resolve(
        self, resolution: tool_executor_service_pb2.Resolution.ValueType, call_id: str = "call_1", **more: Any
    ) -> execution_pb2.Execution:
        """Decides about a call whose outcome was lost."""
        request = tool_executor_service_pb2.ResolveExecutionRequest(
            turn_id="turn_1", call_id=call_id, resolution=resolution, **more
        )
        return (await self.call("ResolveExecution", request)).execution

    async def upload(self, data: bytes, *, piece: int = 1 << 18, **opened: Any) -> artifact_pb2.Artifact:
        """Uploads a file."""

        async def requests() -> AsyncIterator[artifact_service_pb2.UploadArtifactRequest]:
            given: dict[str, Any] = {"name": "file.bin"} | opened
            begun = artifact_service_pb2.OpenUpload(**given)
            yield artifact_service_pb2.UploadArtifactRequest(open=begun)
            for start in range(0, len(data), piece):
                yield artifact_service_pb2.UploadArtifactRequest(data=data[start : start + piece])

        return (await self.call("UploadArtifact", requests())).artifact

    async def download(self, artifact_id: str, start: int = 0, end: int = 0) -> bytes:
        """Downloads a range of a file."""
        request = artifact_service_pb2.DownloadArtifactRequest(artifact_id=artifact_id, start_byte=start, end_byte=end)
        data = b""
        try:
            async for response in self.artifacts.DownloadArtifact(request, metadata=self._metadata, timeout=30):
                data += response.data
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="tool_executor") from error
        return data


@asynccontextmanager
async def calling(mesh: RunningMesh, key: str = "") -> AsyncGenerator[Executor]:
    """Gives a caller of a mesh's tool executor."""
    async with grpc.aio.insecure_channel(mesh.address("tool_executor")) as channel:
        yield Executor(channel, key)


@asynccontextmanager
async def executor_of(*providers: dict[str, Any], **settings: Any) -> AsyncGenerator[Executor]:
    """Gives a tool executor by itself with these providers."""
    async with (
        running_mesh(services=("tool_executor",), providers={"tool_executor": list(providers)}, **settings) as mesh,
        calling(mesh) as executor,
    ):
        yield executor


def searching(fake: FakeSearch, maker: str = "tavily", **config: Any) -> dict[str, Any]:
    """Returns the provider that searches at a fake: its tool is idempotent."""
    kind = "searxng" if maker == "searxng" else f"{maker}-search"
    key = {} if maker == "searxng" else {"api_key": search_servers.KEY}
    return {
        "provider_id": maker,
        "provider_type": f"remote::{kind}",
        "config": {"base_url": f"{fake.base_url}/{maker}", **key, **config},
    }


def drawing(fake: FakeImages, **config: Any) -> dict[str, Any]:
    """Returns the provider that has pictures made at a fake: its tool is not idempotent."""
    here = {"base_url": fake.base_url, "api_key": images_server.KEY, **config}
    return {"provider_id": "images", "provider_type": "remote::openai-images", "config": here}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a state."""
    while True:
        try:
            if await condition():
                return
        except TurnwireError:
            pass
        await asyncio.sleep(0.01)


def names(attachments: Sequence[message_pb2.Attachment]) -> list[str]:
    """Returns the names of attachments, in order."""
    return sorted(attachment.name for attachment in attachments)
