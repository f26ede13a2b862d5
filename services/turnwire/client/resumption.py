"""When a stream is cut, and how long and how often it is tried again."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, cast

import grpc

from turnwire.errors import Cancelled, Overloaded, TurnwireError, Unavailable, from_rpc_error, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 1.0
_LOOKS = 4

# What a proxy or gRPC itself says when a connection breaks. A status of ours is told by its details.
_BREAKS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_PASSING = (Unavailable, Overloaded, Cancelled)


def judged(error: grpc.RpcError) -> tuple[TurnwireError, bool]:
    """Returns the typed error of a call to the agent service, and whether the call is worth repeating."""
    typed = from_rpc_error(error, service="agent")
    failed = cast("grpc.aio.AioRpcError", error)
    if status_of(failed.trailing_metadata()) is None:
        return typed, failed.code() in _BREAKS
    return typed, isinstance(typed, _PASSING)


class Patience:
    """Waits longer from try to try, and gives up when nothing was heard for too long."""

    def __init__(self, seconds: float) -> None:
        """Gives up `seconds` after the first failure."""
        self._seconds = seconds
        self._deadline: float | None = None
        self._delay = _FIRST_DELAY

    def renew(self) -> None:
        """Begins anew: the other side has been heard."""
        self._deadline = None
        self._delay = _FIRST_DELAY

    async def wait(self, error: TurnwireError, pause: Callable[[float], Awaitable[None]]) -> None:
        """Lets `pause` pass the time until the next try.

        Raises:
            TurnwireError: `error`, when it is time to give up.
        """
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._seconds
        delay = max(self._delay * random.uniform(0.7, 1.3), error.retry_after or 0.0)  # noqa: S311 - jitter, no secret
        if now + delay > self._deadline:
            raise error
        self._delay = min(self._delay * 2, _LONGEST_DELAY)
        await pause(delay)


class Silence:
    """Cancels a call on which nothing comes for too long.

    It counts looks rather than time: a loop that was blocked by its own program makes no stream look silent.
    """

    def __init__(self, call: Any, seconds: float | None) -> None:
        """Watches `call`; None never cancels it."""
        self._call = call
        self._listening = False
        self._looks = 0
        self._interval = None if seconds is None else seconds / _LOOKS
        self._timer: asyncio.TimerHandle | None = None
        self.broke = False
        """True when it has cancelled the call."""
        self._arm()

    def begins(self) -> None:
        """The reader waits for the next message from now on."""
        self._looks = 0
        self._listening = True

    def ends(self) -> None:
        """A message came."""
        self._listening = False

    def close(self) -> None:
        """Stops watching."""
        self._interval = None
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._interval is not None:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)

    def _look(self) -> None:
        if self._listening:
            self._looks += 1
            # One more than divides the time, since the first interval has begun before the silence.
            if self._looks > _LOOKS:
                self.broke = True
                self._call.cancel()
                return
        self._arm()
