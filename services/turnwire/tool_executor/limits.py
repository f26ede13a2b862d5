"""How long the parts of an execution may take."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from turnwire.tool_executor.v1 import tool_executor_service_pb2

T = TypeVar("T")
LONGEST = 3600.0
"""No execution takes longer, in seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: for connecting, until something comes, between two pieces of it, and in all."""

    connect: float
    first_byte: float
    silence: float
    total: float


def with_wishes(defaults: Limits, wanted: tool_executor_service_pb2.ExecutionLimits) -> Limits:
    """Returns the limits of a tool with those that its caller has set."""
    wishes = {descriptor.name: duration.seconds + duration.nanos / 1e9 for descriptor, duration in wanted.ListFields()}
    return replace(defaults, **wishes)


def wanted_total(wanted: tool_executor_service_pb2.ExecutionLimits) -> float | None:
    """Returns the seconds that a caller allows in all; None when it says nothing."""
    return wanted.total.seconds + wanted.total.nanos / 1e9 if wanted.HasField("total") else None


class Clock:
    """Watches over the limits of one execution: which of them runs now, and what is left of all."""

    def __init__(self, limits: Limits) -> None:
        """Starts now."""
        self._limits = limits
        self._ends = time.monotonic() + limits.total
        self._limit = self._runs = "total"
        self._timeout: asyncio.Timeout | None = None

    @property
    def left(self) -> float:
        """The seconds that are left in all."""
        return self._ends - time.monotonic()

    def connecting(self) -> None:
        """The tool is being reached."""
        self._limit = "connect"

    def sending(self) -> None:
        """The tool is asked now."""
        self._limit = "first_byte"

    def heard(self) -> None:
        """Something has come from the tool. Before it was asked that counts as nothing."""
        if self._limit == "connect":
            return
        self._limit = "silence"
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds())

    async def within(self, awaited: Awaitable[T]) -> T:
        """Waits for something that the tool gives.

        Raises:
            LimitPassed: it took too long.
        """
        self._timeout = asyncio.timeout(self._seconds())
        try:
            async with self._timeout:
                return await awaited
        except TimeoutError:
            if not self._timeout.expired():
                raise
            raise LimitPassed(self._runs, getattr(self._limits, self._runs)) from None
        finally:
            self._timeout = None

    def _seconds(self) -> float:
        """The seconds until the next limit, which is noted."""
        seconds: float = getattr(self._limits, self._limit)
        self._runs = "total" if self.left < seconds else self._limit
        return min(self.left, seconds)


class LimitPassed(Exception):
    """An execution took too long."""

    def __init__(self, limit: str, seconds: float) -> None:
        """Names the limit, as a field of `ExecutionLimits`, and its seconds."""
        super().__init__(limit)
        self.limit = limit
        self.seconds = seconds

    @property
    def told(self) -> str:
        """What a model reads of it."""
        return _WORDS[self.limit].format(seconds=self.seconds)


_WORDS = {
    "connect": "it could not begin within {seconds:g} s",
    "first_byte": "it gave nothing within {seconds:g} s",
    "silence": "it was silent for {seconds:g} s",
    "total": "it took longer than {seconds:g} s",
}
