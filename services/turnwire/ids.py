"""Opaque, prefixed, time-ordered ids (UUIDv7, RFC 9562). Nothing is ever ordered by them."""

from __future__ import annotations

import os
import time


def new_id(prefix: str) -> str:
    """Returns a new id as ``turn_019a…``: the prefix, and the 32 hexadecimal digits of a UUIDv7."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return f"{prefix}_{value:032x}"


def new_trace_id() -> str:
    """Returns a W3C trace id: 32 hexadecimal digits."""
    return os.urandom(16).hex()
