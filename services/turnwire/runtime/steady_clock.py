"""The time of day, as the other services have it: one process whose clock is set wrongly is still believed by them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SLEWED_SECONDS = 2.0
"""A clock that differs by less is kept in step with the time by small corrections."""
_BELIEVED_SECONDS = 600.0
"""A clock that stays different for so long was set right, as after a start without a network."""


def since_boot() -> float:
    """Returns the seconds since the machine started, its sleep among them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SteadyClock:
    """Follows the machine's clock, but for steps of it, which it takes for mistakes until they have lasted."""

    def __init__(self, wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = since_boot) -> None:
        """`wall` is the machine's clock, `elapsed` one that nobody sets; both in seconds."""
        self._wall = wall
        self._elapsed = elapsed
        self._offset = wall() - elapsed()
        self._differs_since: float | None = None

    def time(self) -> float:
        """Returns the seconds since 1970."""
        elapsed, wall = self._elapsed(), self._wall()
        steady = elapsed + self._offset
        if abs(wall - steady) <= _SLEWED_SECONDS:
            self._differs_since = None
        elif self._differs_since is None:
            self._differs_since = elapsed
            return steady
        elif elapsed - self._differs_since < _BELIEVED_SECONDS:
            return steady
        self._offset = wall - elapsed
        return wall
