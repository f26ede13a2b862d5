"""Logs, metrics and traces of a process."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from turnwire.runtime.settings import TelemetrySettings

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
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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
    parts = incoming.split("-")
    if len(parts) == 4 and len(parts[1]) == 32 and _is_hexadecimal(parts[1]) and int(parts[1], 16):
        return f"00-{parts[1]}-{os.urandom(8).hex()}-{parts[3][:2] or '01'}"
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


def trace_id(traceparent: str) -> str:
    """Returns the trace id of a trace context."""
    return traceparent[3:35]


def _is_hexadecimal(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)
