"""The logs of a process."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

if TYPE_CHECKING:
    from turnwire.runtime.settings import TelemetrySettings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Lines(io.TextIOBase):
    """Writes logs, which may lie on a disk that is full: what cannot be written is lost, and never the work with it.

    The first line that can be written again is preceded by one that says how many were lost.
    """

    def __init__(self, descriptor: int) -> None:
        """Writes to an open file, which stays open."""
        # Without a buffer: what failed once would be tried again with all that comes later, and fail again.
        self._file = io.FileIO(descriptor, "w", closefd=False)
        self._lost = 0
        self._torn = False
        """Whether the last line was written in part."""

    def write(self, text: str, /) -> int:
        """Writes lines, or counts them."""
        data = text.encode("utf-8", "backslashreplace")
        if self._lost:
            told = json.dumps({"event": "log_lines_lost", "level": "warning", "count": self._lost}).encode() + b"\n"
            if not self._put(b"\n" + told if self._torn else told):
                self._lost += 1
                return len(text)
            self._lost = 0
        if not self._put(data):
            self._lost += 1
        return len(text)

    def _put(self, data: bytes) -> bool:
        rest = memoryview(data)
        try:
            while rest:
                written = self._file.write(rest)
                if not written:
                    raise BlockingIOError  # a pipe that is not read
                rest = rest[written:]
        except OSError:
            self._torn = self._torn or 0 < len(rest) < len(data)
            return False
        self._torn = False
        return True


def configure_logs(settings: TelemetrySettings, service: str) -> None:
    """Sends all logs of the process, those of libraries too, to standard error in one form."""
    # A process that was started without standard error has none; its logs go nowhere.
    descriptor = sys.stderr.fileno() if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY)
    lines = cast("TextIO", Lines(descriptor))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = settings.log_format == "console"
    renderer: Any = (
        # Its own way with exceptions shows local variables, and with them keys and what users wrote.
        structlog.dev.ConsoleRenderer(colors=os.isatty(descriptor), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    tail: list[Any] = [renderer] if console else [structlog.processors.format_exc_info, renderer]
    level = _LEVELS[settings.log_level]
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.addFilter(_is_of_interest)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    structlog.contextvars.bind_contextvars(service=service)


def _is_of_interest(record: logging.LogRecord) -> bool:
    """False for what gRPC takes for an error: that a caller has left while a message was on its way to it."""
    raised = record.exc_info[0] if record.exc_info else None
    return raised is None or raised.__name__ != "ExecuteBatchError"
