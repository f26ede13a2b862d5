"""Times as the contract has them, and as the tables have them: microseconds since 1970."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp


def now() -> Timestamp:
    """Returns the present time, cut to microseconds, so that it survives the tables unchanged."""
    return timestamp(now_microseconds())


def now_microseconds() -> int:
    """Returns the present time in microseconds."""
    return time.time_ns() // 1_000


def timestamp(value: int) -> Timestamp:
    """Turns microseconds into a Timestamp."""
    return Timestamp(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1_000)


def microseconds(value: Timestamp) -> int:
    """Turns a Timestamp into microseconds."""
    return value.seconds * 1_000_000 + value.nanos // 1_000
