"""The Connect protocol: unary calls as plain POSTs, streams in envelopes; https://connectrpc.com/docs/protocol."""

from __future__ import annotations

import json
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.responses import Response

from turnwire.errors import InvalidArgument, TurnwireError
from turnwire_gateway.bodies import Streamed, answered, unpacked, whole_body
from turnwire_gateway.protocols.calls import Call, Failed, refuse_streamed_request
from turnwire_gateway.protocols.envelopes import envelope, only_message
from turnwire_gateway.statuses import error_json, error_object, http_status, retry_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from google.rpc import status_pb2
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Receive

    from turnwire_gateway.methods import Method
    from turnwire_gateway.protocols.codecs import Codec
    from turnwire_gateway.upstream import Caller, Upstreams

UNARY: dict[str, Codec] = {"application/json": "json", "application/proto": "proto"}
STREAMS: dict[str, Codec] = {"application/connect+json": "json", "application/connect+proto": "proto"}
_END_STREAM = 0x02
_TIMEOUT = re.compile("[0-9]{1,10}")


async def respond(
    method: Method, kind: str, headers: Headers, receive: Receive, upstreams: Upstreams, caller: Caller, limit: int
) -> ASGIApp:
    """Returns the response to a POST whose content type is `kind`, one of `UNARY` or `STREAMS`.

    Raises:
        ClientGone: nobody waits for it any more.
    """
    if kind in UNARY:
        return await _unary(method, UNARY[kind], kind, headers, receive, upstreams, caller, limit)
    return await _stream(method, STREAMS[kind], kind, headers, receive, upstreams, caller, limit)


def error_response(status: status_pb2.Status, http: int | None = None) -> Response:
    """Returns a status as the error of a unary call."""
    response = Response(error_json(status), http or http_status(status.code), media_type="application/json")
    seconds = retry_seconds(status)
    if seconds is not None:
        response.headers["retry-after"] = str(max(1, round(seconds)))
    return response


async def _unary(
    method: Method,
    codec: Codec,
    kind: str,
    headers: Headers,
    receive: Receive,
    upstreams: Upstreams,
    caller: Caller,
    limit: int,
) -> Response:
    try:
        refuse_streamed_request(method)
        if method.streams_out:
            raise InvalidArgument.one("content-type", f"is application/connect+json or +proto: {method.name} streams")
        _check_version(headers)
        seconds = _seconds(headers)
        body = unpacked(await whole_body(receive, limit), headers.get("content-encoding", ""), limit)
        call = Call(upstreams, method, caller, codec, seconds)
        data = await answered(receive, call.answer(body))
    except TurnwireError as error:
        return error_response(error.to_status())
    except Failed as failed:
        return error_response(failed.status)
    return Response(data, media_type=kind)


async def _stream(
    method: Method,
    codec: Codec,
    kind: str,
    headers: Headers,
    receive: Receive,
    upstreams: Upstreams,
    caller: Caller,
    limit: int,
) -> Streamed:
    pieces: AsyncGenerator[bytes]
    try:
        refuse_streamed_request(method)
        if not method.streams_out:
            raise InvalidArgument.one("content-type", f"is application/json or proto: {method.name} has one answer")
        _check_version(headers)
        seconds = _seconds(headers)
        message, compressed = only_message(await whole_body(receive, limit + 5), limit)
        if compressed:
            message = unpacked(message, headers.get("connect-content-encoding", ""), limit)
        pieces = _enveloped(Call(upstreams, method, caller, codec, seconds), message)
    except TurnwireError as error:
        pieces = _ended(error.to_status())
    return Streamed(pieces, [(b"content-type", kind.encode())])


async def _enveloped(call: Call, message: bytes) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(call.answers(message)) as answers:
            async for data in answers:
                yield envelope(0, data)
    except TurnwireError as error:
        yield _end(error.to_status())
    except Failed as failed:
        yield _end(failed.status)
    else:
        yield _end(None)


async def _ended(status: status_pb2.Status) -> AsyncGenerator[bytes]:
    yield _end(status)


def _end(status: status_pb2.Status | None) -> bytes:
    told = {} if status is None else {"error": error_object(status)}
    return envelope(_END_STREAM, json.dumps(told, ensure_ascii=False).encode())


def _check_version(headers: Headers) -> None:
    version = headers.get("connect-protocol-version", "1")
    if version != "1":
        raise InvalidArgument.one("connect-protocol-version", f"is 1, not {version[:20]!r}")


def _seconds(headers: Headers) -> float | None:
    text = headers.get("connect-timeout-ms")
    if text is None:
        return None
    if _TIMEOUT.fullmatch(text) is None:
        raise InvalidArgument.one("connect-timeout-ms", "is a whole number of at most 10 digits")
    return int(text) / 1000
