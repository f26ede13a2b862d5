"""The log of one turn in memory: one appends, many read."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING

from turnwire.fold import TurnFold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from turnwire.agent.v1 import event_pb2
    from turnwire.errors import TurnwireError


class LogReplaced(Exception):
    """A log is no longer the turn's: this process has lost the turn, or has taken it over, and reads it anew."""


class TurnLog:
    """The events of a turn in order of their numbers, and the fold of those that may be seen.

    A boundary event may be seen once it is committed, a delta once its number is below the committed ceiling and
    everything before it may be seen. Appending never waits for a reader.
    """

    def __init__(self, turn_id: str) -> None:
        """Makes an empty log."""
        self.turn_id = turn_id
        self.fold = TurnFold(turn_id)
        self.next_sequence = 1
        self.ceiling = 0
        """The highest number that may be shown: committed ahead of need, so that no number is used twice."""
        self.interruption: TurnwireError | None = None
        self.replaced = False
        self._may_show: Callable[[], bool] | None = None
        self._visible: list[event_pb2.StepEvent] = []
        self._waiting: deque[event_pb2.StepEvent] = deque()
        self._committed = 0
        self._watchers: set[asyncio.Future[bool]] = set()

    @classmethod
    def stored(cls, turn_id: str, events: Iterable[event_pb2.StepEvent], ceiling: int) -> TurnLog:
        """Makes the log of a turn out of its stored events."""
        log = cls(turn_id)
        log.ceiling = ceiling
        for event in events:
            log._show(event)
        log.next_sequence = log.last_sequence + 1
        log._committed = log.last_sequence
        return log

    @property
    def dark(self) -> bool:
        """True while nothing may be shown: the owner's lease is about to end, and somebody else may go on."""
        return self._may_show is not None and not self._may_show()

    def show_while(self, condition: Callable[[], bool] | None) -> None:
        """Shows events only while the condition holds; `wake` tells readers that it holds again. None: always."""
        self._may_show = condition

    @property
    def last_sequence(self) -> int:
        """The number of the last event that may be seen."""
        return self.fold.last_sequence

    def append_delta(self, event: event_pb2.StepEvent) -> None:
        """Adds a delta; readers see it at once unless it has to wait."""
        self._number(event)
        self._waiting.append(event)
        self._release()

    def append_boundary(self, events: Iterable[event_pb2.StepEvent]) -> None:
        """Adds boundary events; readers see them when `commit` says so."""
        for event in events:
            self._number(event)
            self._waiting.append(event)

    def unstored(self) -> list[event_pb2.StepEvent]:
        """Returns the events after the last committed one, in order, whether seen or not."""
        start = bisect_right(self._visible, self._committed, key=_sequence)
        return [*self._visible[start:], *self._waiting]

    def commit(self, sequence: int, ceiling: int) -> None:
        """Notes that everything up to `sequence` is stored and that numbers up to `ceiling` are reserved."""
        self._committed = max(self._committed, sequence)
        self.ceiling = max(self.ceiling, ceiling)
        self._release()

    def preview(self) -> TurnFold:
        """Returns a fold of everything that was appended, seen or not, that goes its own way."""
        fold = self.fold.copy()
        for event in self._waiting:
            fold.apply(event)
        return fold

    def after(self, sequence: int, limit: int) -> list[event_pb2.StepEvent]:
        """Returns at most `limit` events that may be seen and end after `sequence`."""
        start = bisect_right(self._visible, sequence, key=_sequence)
        return self._visible[start : start + limit]

    def mirror(self, events: Iterable[event_pb2.StepEvent], ceiling: int = 0) -> None:
        """Takes in what the turn's owner has shown or stored; what was seen before is left out."""
        self.ceiling = max(self.ceiling, ceiling)
        fresh = False
        for event in events:
            if event.sequence > self.last_sequence:
                self._show(event)
                fresh = True
        self._committed = self.last_sequence
        self.next_sequence = self.last_sequence + 1
        if fresh:
            self.wake()

    def interrupt(self, error: TurnwireError) -> None:
        """Ends all cursors with an error: they resume elsewhere, or here later."""
        self.interruption = error
        self.wake()

    def replace(self) -> None:
        """Ends all cursors at once: their readers go on with the log that takes its place."""
        self.replaced = True
        self.wake()

    def changed(self) -> asyncio.Future[bool]:
        """Returns a future that is done at the next change. Give it back with `forget`."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._watchers.add(future)
        return future

    def forget(self, future: asyncio.Future[bool]) -> None:
        """Takes a future of `changed` back."""
        self._watchers.discard(future)

    def wake(self) -> None:
        """Has every cursor look again."""
        watchers, self._watchers = self._watchers, set()
        for future in watchers:
            if not future.done():
                future.set_result(False)

    def _number(self, event: event_pb2.StepEvent) -> None:
        # An event may bring a first number of its own: that of a recovery covers the numbers of lost deltas.
        if not event.sequence:
            event.first_sequence = event.sequence = self.next_sequence
        self.next_sequence = event.sequence + 1

    def _release(self) -> None:
        released = False
        while self._waiting:
            event = self._waiting[0]
            limit = self.ceiling if event.WhichOneof("payload") == "step_delta" else self._committed
            if event.sequence > limit:
                break
            self._show(self._waiting.popleft())
            released = True
        if released:
            self.wake()

    def _show(self, event: event_pb2.StepEvent) -> None:
        self.fold.apply(event)
        self._visible.append(event)


def _sequence(event: event_pb2.StepEvent) -> int:
    return event.sequence
