"""What was done once is not to be forgotten over a store that is away for a while: it is offered again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from turnwire.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
_SECONDS = 60.0
_LONGEST_PAUSE = 5.0


async def patiently(keep: Callable[[], Awaitable[T]]) -> T:
    """Returns what `keep` gives, which is asked again, for a minute, while its store is away.

    Raises:
        StoreUnavailable: it stays away.
    """
    ends = time.monotonic() + _SECONDS
    pause = 0.05
    while True:
        try:
            return await keep()
        except StoreUnavailable:
            if time.monotonic() > ends:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
