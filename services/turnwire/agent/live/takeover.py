"""Turns that have no owner: this process goes on with them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.live.recovery import first_events
from turnwire.agent.store.ownership import Claimed
from turnwire.agent.turn.next import failed
from turnwire.agent.v1 import turn_pb2
from turnwire.common.v1 import error_pb2
from turnwire.errors import NotFound, NotOwner, TurnwireError
from turnwire.runtime.failpoints import Failpoint

if TYPE_CHECKING:
    from turnwire.agent.live.live_turn import LiveTurn
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.live.session_queue import Begun, SessionQueue
    from turnwire.agent.live.unbroken import Unbroken

_log = structlog.get_logger(__name__)

_BEGUN = Failpoint("agent.queued_turn_begun")
_TAKEN_OVER = Failpoint("agent.taken_over")
_EXPIRED = Failpoint("agent.pause_expired")


class Beginning:
    """Runs the queued turns that the ends of others have started."""

    def __init__(self, takeover: Takeover, queue: SessionQueue) -> None:
        """Is told by `queue`."""
        self._takeover = takeover
        self._tasks: set[asyncio.Task[None]] = set()
        queue.on_begun = self._begin

    async def close(self) -> None:
        """Waits for what is being started."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, tenant: str, begun: Begun) -> None:
        task = asyncio.create_task(self._takeover.begin(tenant, begun), name=f"begin {begun.row.turn_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Takeover:
    """Takes turns over, each from one caller at a time; of several replicas one gets a turn."""

    def __init__(self, live: LiveTurns, unbroken: Unbroken) -> None:
        """Runs them among the live turns."""
        self._live = live
        self._unbroken = unbroken

    async def recover(self, tenant: str, turn_id: str, *, idle_epoch: int | None = None) -> None:
        """Goes on with a turn that runs and has no owner that lives.

        `idle_epoch`: this process owns it in that epoch, and a defect has left it without a task.
        """
        if not self._live.draining and self._live.lease.good:
            await self._unbroken.run(self._recover(tenant, turn_id, idle_epoch))

    async def expire(self, tenant: str, turn_id: str) -> None:
        """Fails a turn whose pause has lasted too long."""
        try:
            async with self._live.opened(tenant, turn_id) as live, live.lock:
                if live.task is not None or not isinstance(await self._live.claim(live), Claimed):
                    return
                if not live.log.fold.awaits_input:
                    await self._go_on(live, released=True)
                    return
                failure = error_pb2.Failure(
                    reason=error_pb2.ERROR_REASON_INPUT_EXPIRED,
                    message="Nobody answered what the turn waited for in time. Run it again.",
                    metadata={"turn_id": turn_id},
                )
                config = await self._live.config_of(live)
                await _EXPIRED.reached()
                self._live.start(live, config, [failed(live.log.fold.turn, failure)])
        except (NotOwner, NotFound):
            _log.info("expiry_left_to_others", turn_id=turn_id)

    async def begin(self, tenant: str, begun: Begun) -> None:
        """Runs a queued turn that the end of another one has started."""
        async with self._live.opened(tenant, begun.row.turn_id) as live, live.lock:
            await _BEGUN.reached()
            if live.task is None and live.row.epoch <= begun.row.epoch:
                self._live.take(live, begun.row, begun.events)
                self._live.start(live, begun.config)

    async def _recover(self, tenant: str, turn_id: str, idle_epoch: int | None) -> None:
        try:
            async with self._live.opened(tenant, turn_id) as live, live.lock:
                if live.task is not None:
                    return
                outcome = await self._live.claim(live, over_epoch=idle_epoch)
                if isinstance(outcome, Claimed):
                    await self._go_on(live, released=outcome.released)
        except (NotOwner, NotFound):
            _log.info("recovery_left_to_others", turn_id=turn_id)
        except TurnwireError as error:
            _log.warning("recovery_failed", turn_id=turn_id, error=error.message)

    async def _go_on(self, live: LiveTurn, *, released: bool) -> None:
        if live.log.fold.turn.status != turn_pb2.TURN_STATUS_RUNNING:
            await self._live.release(live)  # it has paused meanwhile, and a pause has no owner
            return
        config = await self._live.config_of(live)
        await _TAKEN_OVER.reached()
        _log.info("turn_recovered", turn_id=live.row.turn_id, epoch=live.row.epoch)
        self._live.start(live, config, first_events(live, released=released))
