"""What claims a turn is done to its end, also when who asked for it goes away: a claimed turn has to be run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from turnwire.errors import Draining, TurnwireError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Unbroken:
    """Work whose caller may leave. A commit that has begun takes place; what has to follow it does so too."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of some work, which goes on when the caller is cancelled.

        Raises:
            Draining: this process ends before the work does.
        """
        task = asyncio.create_task(work, name=f"unbroken {work.__qualname__}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait([task])
        if task.cancelled():
            raise Draining(service="agent")
        return task.result()

    async def close(self) -> None:
        """Ends what is under way; another process takes up what it has claimed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, TurnwireError):
            # Its caller is told, unless it has left; then nobody else would say so.
            _log.error("work_defect", work=task.get_name(), exc_info=error)
