"""What Connect and gRPC-Web share: the answers of a call, as the caller's codec writes them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.errors import DeadlineExceeded, TurnwireError, Unimplemented
from turnwire.runtime.channels import upstream
from turnwire_gateway.protocols.codecs import Codec, request_bytes, response_bytes
from turnwire_gateway.statuses import status_from

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from google.rpc import status_pb2

    from turnwire_gateway.methods import Method
    from turnwire_gateway.upstream import Caller, Upstreams


class Failed(Exception):
    """A call ended with a status that is not OK."""

    def __init__(self, status: status_pb2.Status) -> None:
        """Keeps the status."""
        super().__init__(status.message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """One call, before it is made."""

    upstreams: Upstreams
    method: Method
    caller: Caller
    codec: Codec
    seconds: float | None
    """How long it may take; None: as long as it takes."""

    async def answer(self, body: bytes) -> bytes:
        """Makes a call with one answer.

        Raises:
            Failed: it ended with another status.
            TurnwireError: the request is none.
        """
        sent = await request_bytes(self.method, body, self.codec)
        async with upstream(self._begun(sent)) as call:
            try:
                data: bytes = await call
            except grpc.RpcError as error:
                raise self._failed(error) from None
            except asyncio.CancelledError:
                # gRPC raises it for a call that was cancelled by the service's end of the connection, too.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise Failed(_cut(self.method)) from None
        return await response_bytes(self.method, data, self.codec)

    async def answers(self, body: bytes) -> AsyncGenerator[bytes]:
        """Makes a call with any number of answers.

        Raises:
            Failed: it ended with another status.
            TurnwireError: the request is none.
        """
        sent = await request_bytes(self.method, body, self.codec)
        async with upstream(self._begun(sent)) as call:
            try:
                async for data in call:
                    yield await response_bytes(self.method, data, self.codec)
            except grpc.RpcError as error:
                raise self._failed(error) from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise Failed(_cut(self.method)) from None

    def _begun(self, sent: bytes) -> Any:
        if self.seconds == 0:
            # gRPC may be faster than no time at all.
            raise DeadlineExceeded(self.method.service, detail="the caller gave it none")
        return self.upstreams.call(self.method, sent, self.caller, self.seconds)

    def _failed(self, error: grpc.RpcError) -> Failed:
        service = self.method.service
        return Failed(status_from(error, service=service, address=self.upstreams.address(service)))


def refuse_streamed_request(method: Method) -> None:
    """Says no to methods whose requests are streams: browsers cannot send any.

    Raises:
        Unimplemented: it is one.
    """
    if method.streams_in:
        _, _, name = method.name.partition("/")
        instead = (
            "PUT the file to /v1/artifacts?name=NAME instead, or call the method over gRPC."
            if name == "UploadArtifact"
            else "Call it over gRPC."
        )
        raise Unimplemented(f"{method.name} over HTTP, as its request is a stream", instead)


def _cut(method: Method) -> status_pb2.Status:
    return TurnwireError.cut(method.service).to_status()
