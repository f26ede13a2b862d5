"""gRPC-Web: gRPC's messages and, as a last frame, its trailers; also as base64 text for old browsers."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from contextlib import aclosing
from typing import TYPE_CHECKING

from turnwire.errors import InvalidArgument, TurnwireError
from turnwire_gateway.bodies import Streamed, unpacked, whole_body
from turnwire_gateway.protocols.calls import Call, Failed, refuse_streamed_request
from turnwire_gateway.protocols.envelopes import envelope, only_message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from google.rpc import status_pb2
    from starlette.datastructures import Headers
    from starlette.types import Receive

    from turnwire_gateway.methods import Method
    from turnwire_gateway.protocols.codecs import Codec
    from turnwire_gateway.upstream import Caller, Upstreams

KINDS: dict[str, tuple[Codec, bool]] = {
    "application/grpc-web": ("proto", False),
    "application/grpc-web+proto": ("proto", False),
    "application/grpc-web+json": ("json", False),
    "application/grpc-web-text": ("proto", True),
    "application/grpc-web-text+proto": ("proto", True),
    "application/grpc-web-text+json": ("json", True),
}
"""Content type to codec, and whether the body is base64."""
_TRAILERS = 0x80
_TIMEOUT = re.compile("([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_SECONDS = 366 * 86_400.0
"""More cannot be told to gRPC."""
_PADDED = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


async def respond(
    method: Method | None,
    kind: str,
    headers: Headers,
    receive: Receive,
    upstreams: Upstreams,
    caller: Caller,
    limit: int,
    *,
    refusal: TurnwireError | None = None,
) -> Streamed:
    """Returns the response to a POST whose content type is `kind`, one of `KINDS`; or `refusal` in its form.

    Raises:
        ClientGone: nobody waits for it any more.
    """
    codec, is_text = KINDS[kind]
    frames: AsyncGenerator[bytes]
    try:
        if refusal is not None or method is None:
            raise refusal or InvalidArgument.one("path", "names no method")
        refuse_streamed_request(method)
        seconds = _seconds(headers)
        body = await whole_body(receive, 2 * limit + 16 if is_text else limit + 5)
        message, compressed = only_message(_decoded(body) if is_text else body, limit)
        if compressed:
            message = unpacked(message, headers.get("grpc-encoding", ""), limit)
        frames = _framed(Call(upstreams, method, caller, codec, seconds), message)
    except TurnwireError as error:
        frames = _ended(error.to_status())
    return Streamed(_as_text(frames) if is_text else frames, [(b"content-type", kind.encode())])


async def _framed(call: Call, message: bytes) -> AsyncGenerator[bytes]:
    try:
        if call.method.streams_out:
            async with aclosing(call.answers(message)) as answers:
                async for data in answers:
                    yield envelope(0, data)
        else:
            yield envelope(0, await call.answer(message))
    except TurnwireError as error:
        yield _trailers(error.to_status())
    except Failed as failed:
        yield _trailers(failed.status)
    else:
        yield _trailers(None)


async def _ended(status: status_pb2.Status) -> AsyncGenerator[bytes]:
    yield _trailers(status)


async def _as_text(frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    # Each frame with its padding: readers decode piece by piece.
    async with aclosing(frames):
        async for frame in frames:
            yield base64.b64encode(frame)


def _trailers(status: status_pb2.Status | None) -> bytes:
    if status is None:
        return envelope(_TRAILERS, b"grpc-status: 0\r\n")
    message = urllib.parse.quote(status.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    details = base64.b64encode(status.SerializeToString()).rstrip(b"=").decode()
    lines = f"grpc-status: {status.code}\r\ngrpc-message: {message}\r\ngrpc-status-details-bin: {details}\r\n"
    return envelope(_TRAILERS, lines.encode())


def _decoded(text: bytes) -> bytes:
    """Decodes base64 that may be several padded pieces after one another."""
    out: list[bytes] = []
    position = 0
    while position < len(text):
        match = _PADDED.match(text, position)
        piece = match[0] if match is not None else b""
        try:
            out.append(base64.b64decode(piece, validate=True))
        except binascii.Error:
            piece = b""
        if not piece:
            raise InvalidArgument.one("body", "is base64, as its content type says")
        position += len(piece)
    return b"".join(out)


def _seconds(headers: Headers) -> float | None:
    text = headers.get("grpc-timeout")
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise InvalidArgument.one("grpc-timeout", "is up to 8 digits and one of H, M, S, m, u, n")
    return min(int(match[1]) * _UNITS[match[2]], _LONGEST_SECONDS)
