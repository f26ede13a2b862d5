"""Messages as bytes of Protobuf or of JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from google.protobuf import json_format

from turnwire.errors import MalformedMessage
from turnwire_gateway.event_json import message_json

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from turnwire_gateway.methods import Method

Codec = Literal["proto", "json"]
_LARGE = 64 * 1024
"""JSON of more bytes is converted in a thread: it would hold up everybody else."""


async def request_bytes(method: Method, body: bytes, codec: Codec) -> bytes:
    """Returns the request as its service reads it.

    Raises:
        MalformedMessage: it is no JSON of the message. Bytes of Protobuf are judged by the service.
    """
    if codec == "proto":
        return body
    if len(body) > _LARGE:
        return await asyncio.to_thread(_from_json, method, body)
    return _from_json(method, body)


async def response_bytes(method: Method, data: bytes, codec: Codec) -> bytes:
    """Returns an answer as the caller reads it."""
    if codec == "proto":
        return data
    if len(data) > _LARGE:
        return await asyncio.to_thread(_to_json, method, data)
    return _to_json(method, data)


def _from_json(method: Method, body: bytes) -> bytes:
    message: Message = method.request()
    try:
        text = body.decode().strip() or "{}"
        if not text.startswith("{"):
            raise ValueError("it is no object")
        json_format.Parse(text, message)
        return message.SerializeToString()
    except (json_format.ParseError, ValueError, RecursionError, OverflowError) as error:
        name = method.request.DESCRIPTOR.name
        # The parser tells of it in an error of its own, or lets it through.
        deep = isinstance(error, RecursionError) or "recursion" in str(error)
        told = "it nests too deep" if deep else str(error)
        raise MalformedMessage.restored(
            f"The request is no {name} in JSON: {told}", metadata={"method": method.name}
        ) from None


def _to_json(method: Method, data: bytes) -> bytes:
    return message_json(method.response.FromString(data))
