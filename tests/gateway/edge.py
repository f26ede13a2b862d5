"""A mesh with its gateway, and callers of every protocol."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
from google.rpc import status_pb2

from turnwire.errors import status_of
from turnwire.testing.mesh import RunningMesh, free_port_offset, running_mesh
from turnwire_gateway.methods import METHODS, Method
from turnwire_gateway.serving import Gateway, gateway_serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from google.protobuf.message import Message

HEAD = struct.Struct(">BI")
NAMES = {
    "canceled": 1,
    "unknown": 2,
    "invalid_argument": 3,
    "deadline_exceeded": 4,
    "not_found": 5,
    "already_exists": 6,
    "permission_denied": 7,
    "resource_exhausted": 8,
    "failed_precondition": 9,
    "aborted": 10,
    "out_of_range": 11,
    "unimplemented": 12,
    "internal": 13,
    "unavailable": 14,
    "data_loss": 15,
    "unauthenticated": 16,
}
"""As https://connectrpc.com/docs/protocol lists them."""


@dataclass
class Answer:
    """What came back of a call: its messages, and the status it ended with."""

    messages: list[Message]
    status: status_pb2.Status

    @property
    def reason(self) -> str:
        """The reason of our error, if there is one."""
        for detail in self.status.details:
            if detail.TypeName() == "google.rpc.ErrorInfo":
                from google.rpc import error_details_pb2

                return error_details_pb2.ErrorInfo.FromString(detail.value).reason
        return ""


@dataclass
class Edge:
    """A gateway in front of a mesh."""

    mesh: RunningMesh
    gateway: Gateway
    url: str
    http: aiohttp.ClientSession

    async def grpc(self, name: str, request: bytes, metadata: Sequence[tuple[str, str]] = ()) -> Answer:
        """Calls the service itself."""
        method = METHODS[name]
        async with grpc.aio.insecure_channel(self.mesh.address(method.service)) as channel:
            make = channel.unary_stream if method.streams_out else channel.unary_unary
            call: Any = make(f"/{name}")(request, metadata=tuple(metadata), timeout=20)
            try:
                found = [data async for data in call] if method.streams_out else [await call]
            except grpc.aio.AioRpcError as error:
                number, _ = error.code().value
                return Answer([], status_of(error.trailing_metadata()) or status_pb2.Status(code=number))
        return Answer([method.response.FromString(data) for data in found], status_pb2.Status())

    async def connect(
        self, name: str, request: bytes, codec: str = "proto", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Calls by the Connect protocol; `request` is of the codec."""
        method = METHODS[name]
        if method.streams_out:
            kind = f"application/connect+{codec}"
            async with self.post(name, HEAD.pack(0, len(request)) + request, kind, headers) as response:
                assert 200 == response.status
                assert kind == response.content_type
                return stream_answer(method, await response.read(), codec)
        async with self.post(name, request, f"application/{codec}", headers) as response:
            body = await response.read()
            if response.status == 200:
                return Answer([decoded(method, body, codec)], status_pb2.Status())
            return Answer([], connect_status(json.loads(body)))

    async def grpc_web(
        self, name: str, request: bytes, *, text: bool = False, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Calls by gRPC-Web."""
        method = METHODS[name]
        sent = HEAD.pack(0, len(request)) + request
        kind = f"application/grpc-web{'-text' if text else ''}+proto"
        async with self.post(name, base64.b64encode(sent) if text else sent, kind, headers) as response:
            assert 200 == response.status
            assert kind == response.content_type
            body = await response.read()
        messages: list[Message] = []
        status: status_pb2.Status | None = None
        for flags, data in frames(unpadded(body) if text else body):
            assert status is None, "trailers come last"
            if flags & 0x80:
                status = web_status(data)
            else:
                messages.append(method.response.FromString(data))
        assert status is not None
        return Answer(messages, status)

    def post(self, path: str, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> Any:
        """Begins a POST."""
        return self.http.post(f"{self.url}/{path}", data=body, headers={"content-type": kind, **(headers or {})})


@asynccontextmanager
async def running_edge(
    *, services: Sequence[str] = ("inference", "agent"), environ: Mapping[str, str] | None = None, **mesh: Any
) -> AsyncGenerator[Edge]:
    """Gives a mesh with a gateway in this process; arguments are those of `running_mesh`."""
    mesh.setdefault("listen", {"port_offset": free_port_offset([*services, "gateway"])})
    async with (
        running_mesh("one_process", services=services, **mesh) as running,
        gateway_serving(running.settings, environ=environ or {}) as gateway,
        aiohttp.ClientSession() as http,
    ):
        yield Edge(running, gateway, f"http://127.0.0.1:{running.settings.port('gateway')}", http)


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """Returns the frames of a body, flags and data; the body is whole frames."""
    found: list[tuple[int, bytes]] = []
    position = 0
    while position < len(body):
        flags, size = HEAD.unpack_from(body, position)
        data = body[position + HEAD.size : position + HEAD.size + size]
        assert size == len(data)
        found.append((flags, data))
        position += HEAD.size + size
    return found


def stream_answer(method: Method, body: bytes, codec: str) -> Answer:
    """Reads a Connect stream."""
    *messages, (flags, last) = frames(body)
    assert 2 == flags, "EndStreamResponse comes last"
    end = json.loads(last)
    status = connect_status(end["error"]) if "error" in end else status_pb2.Status()
    return Answer([decoded(method, data, codec) for _, data in messages], status)


def connect_status(error: dict[str, Any]) -> status_pb2.Status:
    """Reads an error of Connect."""
    status = status_pb2.Status(code=NAMES[error["code"]], message=error.get("message", ""))
    for detail in error.get("details", ()):
        value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        status.details.add(type_url=f"type.googleapis.com/{detail['type']}", value=value)
    return status


def web_status(trailers: bytes) -> status_pb2.Status:
    """Reads the trailers of gRPC-Web."""
    from urllib.parse import unquote

    lines = dict(line.split(": ", 1) for line in trailers.decode("ascii").split("\r\n") if line)
    status = status_pb2.Status(code=int(lines["grpc-status"]), message=unquote(lines.get("grpc-message", "")))
    details = lines.get("grpc-status-details-bin")
    if details is not None:
        told = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
        assert (told.code, told.message) == (status.code, status.message)
        return told
    return status


def decoded(method: Method, data: bytes, codec: str) -> Message:
    """Returns an answer as a message."""
    from google.protobuf import json_format

    return method.response.FromString(data) if codec == "proto" else json_format.Parse(data, method.response())


def unpadded(text: bytes) -> bytes:
    """Decodes base64 that may be several padded pieces."""
    import re

    return b"".join(base64.b64decode(piece) for piece in re.findall(rb"[A-Za-z0-9+/]+={0,2}", text))
