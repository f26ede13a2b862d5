"""Frames on a pipe: a kind, a length, a body. The same on both ends of each pipe of a sandbox."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

HEAD = struct.Struct(">cI")

# From the runner to the sandbox.
RUN = b"r"
KILL = b"k"
PRELOAD = b"p"
PING = b"i"
WRITE = b"w"

# From the sandbox to the runner.
READY = b"R"
STDOUT = b"O"
STDERR = b"E"
FILE = b"F"
REMOVED = b"X"
LEFT_OUT = b"L"
NOTE = b"N"
FINISHED = b"D"
WRITTEN = b"W"

LONGEST = 8 * 1024 * 1024
"""No frame has a longer body: a reader that sees one stops reading."""
PIECE = 64 * 1024


class Broken(Exception):
    """What came is no frame."""


def frame(kind: bytes, body: bytes) -> bytes:
    """Returns a frame."""
    return HEAD.pack(kind, len(body)) + body


def message(kind: bytes, values: dict[str, Any], body: bytes = b"") -> bytes:
    """Returns a frame with values before its body."""
    head = json.dumps(values).encode()
    return frame(kind, struct.pack(">I", len(head)) + head + body)


def opened(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns the values and the body of a message.

    Raises:
        Broken: it is none.
    """
    try:
        (length,) = struct.unpack_from(">I", body)
        values: Any = json.loads(body[4 : 4 + length])
    except (ValueError, struct.error, RecursionError) as error:
        raise Broken(str(error)) from None
    if not isinstance(values, dict):
        raise Broken("no values")
    return values, body[4 + length :]  # pyright: ignore[reportUnknownVariableType] - the keys of JSON are strings


def read(pipe: int) -> tuple[bytes, bytes] | None:
    """Waits for a frame; None at the end of the pipe.

    Raises:
        Broken: it is none.
    """
    head = _exactly(pipe, HEAD.size)
    if head is None:
        return None
    kind, length = HEAD.unpack(head)
    if length > LONGEST:
        raise Broken(f"{length} bytes")
    body = _exactly(pipe, length)
    return None if body is None else (kind, body)


def write(pipe: int, data: bytes) -> None:
    """Writes all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


def _exactly(pipe: int, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(pipe, min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)
