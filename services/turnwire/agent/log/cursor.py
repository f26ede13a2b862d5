"""A reader of a turn's log: from any number, live or long finished."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from turnwire.agent.log.merge import merged
from turnwire.agent.log.turn_log import LogReplaced
from turnwire.agent.v1 import event_pb2
from turnwire.fold import TERMINAL_PAYLOADS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.agent.log.turn_log import TurnLog

_BATCH = 1024


class Cursor:
    """Reads a log after a number. What gathers while the reader is busy it gets merged."""

    def __init__(self, log: TurnLog, after: int, *, follow_pauses: bool, heartbeat_seconds: float) -> None:
        """Stands after the event `after`; `heartbeat_seconds` of silence give a heartbeat."""
        self._log = log
        self._after = after
        self._follow_pauses = follow_pauses
        self._heartbeat_seconds = heartbeat_seconds

    async def events(self) -> AsyncGenerator[event_pb2.StepEvent]:
        """Yields the events until the turn ends, or pauses where pauses are not followed.

        Raises:
            LogReplaced: the turn has another log by now; go on with that one after the last number.
            TurnwireError: the log was interrupted; resume after the last number.
        """
        last: event_pb2.StepEvent | None = None
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        while True:
            if self._log.replaced:
                raise LogReplaced
            batch = [] if self._log.dark else self._log.after(self._after, _BATCH)
            if batch:
                for event in merged(batch) if len(batch) > 1 else batch:
                    if self._log.dark or self._log.replaced:
                        break  # while the last one was on its way
                    self._after = event.sequence
                    last = event
                    yield event
                quiet_since = loop.time()
                continue
            if not self._log.dark and self._at_end(last):
                return
            if self._log.interruption is not None:
                raise self._log.interruption
            quiet = not await self._wait(self._heartbeat_seconds)
            if quiet and not self._log.dark and not self._log.after(self._after, 1):
                yield self._heartbeat(loop.time() - quiet_since)

    def _at_end(self, last: event_pb2.StepEvent | None) -> bool:
        fold = self._log.fold
        if last is not None and last.WhichOneof("payload") in TERMINAL_PAYLOADS:
            return True
        if fold.finished and self._after >= fold.last_sequence:
            return True
        return fold.awaits_input and not self._follow_pauses

    async def _wait(self, seconds: float) -> bool:
        """True when the log changed, False when it stayed quiet."""
        changed = self._log.changed()
        timer = asyncio.get_running_loop().call_later(seconds, _finish, changed)
        try:
            return not await changed
        finally:
            timer.cancel()
            self._log.forget(changed)

    def _heartbeat(self, elapsed: float) -> event_pb2.StepEvent:
        turn = self._log.fold.turn
        event = event_pb2.StepEvent(
            first_sequence=self._after,
            sequence=self._after,
            turn_id=self._log.turn_id,
            step_id=turn.steps[-1].step_id if turn.steps else "",
        )
        event.event_time.GetCurrentTime()
        event.heartbeat.elapsed.FromMilliseconds(int(elapsed * 1000))
        return event


def _finish(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(True)
