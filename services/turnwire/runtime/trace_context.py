"""The W3C trace context of a call: which trace it belongs to, and its span."""

from __future__ import annotations

import os
import re

_TRACEPARENT = re.compile(
    "(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


def next_traceparent(incoming: str) -> str:
    """Returns the trace context of a call: its caller's trace with a span of our own, or a new trace."""
    parsed = parsed_traceparent(incoming)
    if parsed is not None:
        trace, _, flags = parsed
        return f"00-{trace}-{os.urandom(8).hex()}-{flags}"
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


def parsed_traceparent(text: str) -> tuple[str, str, str] | None:
    """Returns trace id, span id and flags of a W3C trace context; None when it is none."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or match["version"] == "ff" or not int(match["trace"], 16) or not int(match["span"], 16):
        return None
    # Later versions may carry more; version 00 may not.
    if match["more"] and match["version"] == "00":
        return None
    return match["trace"], match["span"], match["flags"]


def trace_id(traceparent: str) -> str:
    """Returns the trace id of a trace context."""
    return traceparent[3:35]
