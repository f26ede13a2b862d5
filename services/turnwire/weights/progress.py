"""Progress of a pull in bytes: one line redrawn on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from typing import Protocol, TextIO

# Off a terminal (CI logs, pipes) a line is due every tenth of the file, but not more often than the first of these,
# and in any case after the second.
CLOSEST_SECONDS = 1.0
QUIET_SECONDS = 5.0
# On a terminal, redrawing more often than this only costs.
REDRAW_SECONDS = 0.1


def in_bytes(count: int) -> str:
    """`count` as people read it: 491.4 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


class Progress(Protocol):
    """Told what a pull does; the command line draws it, a test records it."""

    def note(self, text: str) -> None:
        """Take one line that stands on its own (a source that did not answer, a file that is ready)."""
        ...

    def begin(self, label: str, total: int) -> None:
        """A file of `total` bytes starts to arrive."""
        ...

    def reached(self, done: int) -> None:
        """`done` bytes of the file are there, counted from its first byte."""
        ...

    def end(self) -> None:
        """The file is over, arrived or not."""
        ...


class Silent:
    """A progress that nobody watches."""

    def note(self, text: str) -> None: ...

    def begin(self, label: str, total: int) -> None: ...

    def reached(self, done: int) -> None: ...

    def end(self) -> None: ...


class Lines:
    """Progress written to a text stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._redraws = stream.isatty()
        self._label = ""
        self._total = 0
        self._started = 0.0
        self._first: int | None = None
        self._shown_at = 0.0
        self._shown_tenth = 0
        self._width = 0

    def note(self, text: str) -> None:
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def begin(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._started = self._shown_at = time.monotonic()
        self._first = None
        self._shown_tenth = 0

    def reached(self, done: int) -> None:
        now = time.monotonic()
        if self._first is None:
            # Bytes kept from an earlier run say nothing about today's speed.
            self._first = done
            self._started = now
            self._shown_tenth = 10 * done // max(self._total, 1)
        if self._redraws:
            if now - self._shown_at >= REDRAW_SECONDS or done == self._total:
                self._shown_at = now
                self._redraw(self._line(done, now))
            return
        tenth = 10 * done // max(self._total, 1)
        due = CLOSEST_SECONDS if tenth > self._shown_tenth else QUIET_SECONDS
        if now - self._shown_at >= due:
            self._shown_at = now
            self._shown_tenth = tenth
            self._stream.write(self._line(done, now) + "\n")
            self._stream.flush()

    def end(self) -> None:
        self._clear()

    def _line(self, done: int, now: float) -> str:
        percent = 100 * done // max(self._total, 1)
        seconds = now - self._started
        speed = int((done - (self._first or 0)) / seconds) if seconds > 0.05 else 0
        rate = f"  {in_bytes(speed)}/s" if speed else ""
        return f"{self._label}  {in_bytes(done)} of {in_bytes(self._total)}  {percent} %{rate}"

    def _redraw(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def _clear(self) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
