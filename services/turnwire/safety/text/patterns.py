"""Regular expressions in linear time (RE2), on UTF-8 bytes, stopped when their time is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import re2

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = 16 * 1024 * 1024
"""What one pattern may use; past it RE2 goes on with a slower, still linear way."""


class Stopped(Exception):
    """The time of a shield is over."""


class Stop:
    """Ends work in a thread: a thread cannot be cancelled, so it asks between two searches."""

    def __init__(self, seconds: float) -> None:
        """Work may take so long from now."""
        self._end = time.monotonic() + seconds
        self._set = False

    def set(self) -> None:
        """Ends the work at its next question."""
        self._set = True

    def check(self) -> None:
        """Returns while there is time.

        Raises:
            Stopped: it is over.
        """
        if self._set or time.monotonic() > self._end:
            raise Stopped


class PatternError(ValueError):
    """A pattern that RE2 does not take."""


def compiled(source: str, *, ignore_case: bool = False, memory: int = _MEMORY) -> Any:
    """Returns a pattern that searches UTF-8 bytes.

    Raises:
        PatternError: it is none in the syntax of RE2; the error says why.
    """
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.max_mem = memory
    options.log_errors = False
    try:
        return re2.compile(source.encode(), options)
    except re2.error as error:
        told = error.args[0] if error.args else error
        raise PatternError(told.decode(errors="replace") if isinstance(told, bytes) else str(told)) from None


def spans(pattern: Any, data: bytes, stop: Stop, *, group: int = 0) -> Iterator[tuple[int, int]]:
    """Returns the places of a pattern (or of one of its groups), from left to right.

    The search goes on at the end of the group, so that what only surrounds a match may belong to the next one too.
    """
    for match in matches(pattern, data, stop, group=group):
        yield match.span(group)


def matches(pattern: Any, data: bytes, stop: Stop, *, group: int = 0) -> Iterator[Any]:
    """Returns the matches of a pattern, from left to right; empty ones are left out."""
    position = 0
    while position <= len(data):
        stop.check()
        match = pattern.search(data, position)
        if match is None:
            return
        start, end = match.span(group)
        if end > start:
            yield match
        position = max(end, position + 1)
