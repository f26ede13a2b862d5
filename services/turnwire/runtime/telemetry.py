"""Logs, metrics and traces of a process."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from turnwire.runtime.settings import TelemetrySettings

_TRACEPARENT = re.compile(
    "(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(settings: TelemetrySettings, service: str) -> None:
    """Sends all logs of the process, those of libraries too, to standard error in one form."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = settings.log_format == "console"
    renderer: Any = (
        # Its own way with exceptions shows local variables, and with them keys and what users wrote.
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    tail: list[Any] = [renderer] if console else [structlog.processors.format_exc_info, renderer]
    level = _LEVELS[settings.log_level]
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    structlog.contextvars.bind_contextvars(service=service)


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
