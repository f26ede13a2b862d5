"""The messages between the service and the process that reads: a length, a header in JSON, a body of bytes."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_LENGTHS = struct.Struct("!IQ")
LENGTHS_SIZE = _LENGTHS.size
_MAX_HEADER = 64 * 1024 * 1024

SPAN = struct.Struct("!QQIII")
"""A chunk: its start and end in bytes, its tokens, its page, and the number of its heading."""


class BrokenFrame(Exception):
    """What came is no message, or one that is too large."""


def packed(header: dict[str, Any], body_size: int) -> bytes:
    """Returns what stands before a body."""
    encoded = json.dumps(header).encode()
    return _LENGTHS.pack(len(encoded), body_size) + encoded


def received(read: Callable[[int], bytes], *, max_body: int) -> tuple[dict[str, Any], bytes]:
    """Returns the next message; `read` gives exactly so many bytes or raises.

    Raises:
        BrokenFrame: it is no message, or too large.
    """
    header_size, body_size = _LENGTHS.unpack(read(LENGTHS_SIZE))
    if header_size > _MAX_HEADER or body_size > max_body:
        raise BrokenFrame(f"a message of {header_size} and {body_size} bytes")
    try:
        header = json.loads(read(header_size))
    except ValueError as error:
        raise BrokenFrame(f"a header that is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise BrokenFrame("a header that is no object")
    return header, read(body_size)
