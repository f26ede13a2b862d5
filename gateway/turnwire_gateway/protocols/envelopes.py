"""Messages in a stream: a byte of flags, four of length, the message. gRPC-Web and Connect share the form."""

from __future__ import annotations

import struct

from turnwire.errors import InvalidArgument, MessageTooLarge

_HEAD = struct.Struct(">BI")
COMPRESSED = 0x01


def envelope(flags: int, data: bytes) -> bytes:
    """Returns a message with its head."""
    return _HEAD.pack(flags, len(data)) + data


def only_message(body: bytes, limit: int) -> tuple[bytes, bool]:
    """Returns the one message of a body, and whether it is compressed.

    Raises:
        InvalidArgument: the body is not one whole message.
        MessageTooLarge: its head announces more bytes than `limit`.
    """
    if len(body) < _HEAD.size:
        raise InvalidArgument.one("body", "holds one message with its five bytes of head, and ends before")
    flags, size = _HEAD.unpack_from(body)
    if size > limit:
        raise MessageTooLarge(size_bytes=size, limit_bytes=limit)
    if flags & ~COMPRESSED:
        raise InvalidArgument.one("body", f"begins with a message; its flags are {flags:#04x}")
    if len(body) != _HEAD.size + size:
        raise InvalidArgument.one("body", f"holds one message of {size} bytes, and has {len(body) - _HEAD.size}")
    return body[_HEAD.size :], bool(flags & COMPRESSED)
