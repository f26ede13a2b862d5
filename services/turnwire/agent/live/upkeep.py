"""What the agent service does by itself: turns without an owner go on, pauses expire, idle sessions are erased."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.log.writer import FORMAT
from turnwire.agent.store import inbox, leases, ownership, requests, sessions, turns
from turnwire.agent.store.ownership import TOPIC
from turnwire.errors import NotFound, StoreUnavailable, TurnwireError
from turnwire.runtime.failpoints import Boundary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from turnwire.agent.live.control import TurnControl
    from turnwire.agent.live.peers import Peers
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.live.session_queue import Begun, SessionQueue
    from turnwire.agent.live.takeover import Takeover
    from turnwire.agent.sessions import Sessions
    from turnwire.runtime.settings import AgentSettings
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)

_QUEUE = Boundary("agent.queue_started")


class Upkeep:
    """Runs beside the service, on each replica: what several find, one of them does."""

    def __init__(
        self,
        store: Store,
        live: LiveTurns,
        takeover: Takeover,
        control: TurnControl,
        queue: SessionQueue,
        sessions: Sessions,
        settings: AgentSettings,
        peers: Peers,
    ) -> None:
        """Works on all tenants; of `peers` it lets go of those that are gone."""
        self._peers = peers
        self._store = store
        self._live = live
        self._takeover = takeover
        self._control = control
        self._queue = queue
        self._sessions = sessions
        self._settings = settings
        self._idle: dict[tuple[str, str], int] = {}
        """Turns that the last sweep found without a task, though this process owns them; and in which epoch."""
        self._hint = asyncio.Event()

    async def recover(self) -> None:
        """Takes over the turns that have no owner.

        On SQLite a service is one process, and it holds the lock: it takes all turns that ran.
        """
        found = await self._store.read(lambda tx: ownership.abandoned(tx, FORMAT))
        # In another order on each replica: they share the work.
        random.shuffle(found)
        await _each(found, self._takeover.recover)

    async def run(self) -> None:
        """Looks after turns and sessions until it is cancelled."""
        end = self._store.listen(TOPIC, lambda _: self._hint.set())
        try:
            await asyncio.gather(self._again(self.look), self._again(self.sweep, self._settings.sweep_seconds))
        finally:
            end()

    async def look(self) -> None:
        """Goes on with turns that have no owner, takes in what lies in inboxes, starts queues that stand still.

        Pauses that have run out are failed. A turn that another replica took from this one is not run any further.
        """
        if not self._live.lease.good:
            return
        await self._let_go_of_lost()
        await self.recover()
        waiting = await self._store.read(lambda tx: inbox.waiting(tx, self._live.lease.instance_id))
        await _each(waiting, self._control.take_inbox)
        await _each(await self._store.read(lambda tx: ownership.stalled_queues(tx, FORMAT)), self._start_queue)
        await _each(await self._store.read(turns.expired), self._takeover.expire)

    async def sweep(self) -> None:
        """Erases sessions that are not kept, forgets old request ids and replicas.

        A turn that a defect has left without a task goes on as after a restart. It is taken when two sweeps have found
        it so in one epoch: one that was just accepted is about to be started.
        """
        owned = await self._store.read(lambda tx: ownership.owned(tx, self._live.lease.instance_id))
        idle_turns = {key: epoch for key, epoch in owned.items() if not self._live.runs(*key)}
        for (tenant, turn_id), epoch in idle_turns.items() & self._idle.items():
            await self._takeover.recover(tenant, turn_id, idle_epoch=epoch)
        self._idle = idle_turns

        async def unit(tx: Transaction) -> list[tuple[str, str]]:
            return await sessions.to_erase(tx, await tx.now() - int(self._settings.erase_seconds * 1_000_000))

        await _each(await self._store.read(unit), self._erase)
        await self._store.write(requests.sweep)
        if not self._live.lease.exclusive:
            await self._store.write(leases.sweep)
            await self._peers.keep(await self._store.read(leases.living))

    async def _again(self, work: Callable[[], Awaitable[None]], seconds: float | None = None) -> None:
        while True:
            try:
                await work()
            except TurnwireError as error:
                _log.warning("sweep_failed", error=error.message)
            except Exception:
                # One turn's defect must not keep the others from being looked after.
                _log.exception("sweep_defect")
            if seconds is not None:
                await asyncio.sleep(seconds)
                continue
            self._hint.clear()
            try:
                async with asyncio.timeout(self._settings.lease_renew_seconds):
                    await self._hint.wait()
            except TimeoutError:
                pass

    async def _let_go_of_lost(self) -> None:
        running = self._live.running
        if self._live.lease.exclusive or not running:
            return
        owned = await self._store.read(lambda tx: ownership.owned(tx, self._live.lease.instance_id))
        for live in running:
            if live.task is None or owned.get(live.key) == live.row.epoch:
                continue
            row = await self._store.read(lambda tx, live=live: turns.get(tx, live.tenant, live.row.turn_id))
            if self._live.runs(*live.key) and (row is None or row.epoch != live.row.epoch):
                _log.warning("turn_lost", turn_id=live.row.turn_id, epoch=live.row.epoch)
                self._live.lose(live)

    async def _erase(self, tenant: str, session_id: str) -> None:
        try:
            await self._sessions.erase(tenant, session_id)
        except NotFound:
            _log.debug("session_erased_elsewhere", session_id=session_id)

    async def _start_queue(self, tenant: str, session_id: str) -> None:
        async def unit(tx: Transaction) -> Begun | None:
            return await self._queue.begin(tx, tenant, session_id)

        async with _QUEUE:
            begun = await self._store.write(unit)
        if begun is not None:
            await self._takeover.begin(tenant, begun)


async def _each(found: Sequence[tuple[str, str]], work: Callable[[str, str], Awaitable[None]]) -> None:
    """Does some work on each that was found, of one tenant each; one that cannot be done keeps no other from it.

    Raises:
        StoreUnavailable: the others would fare no better.
    """
    for tenant, name in found:
        try:
            await work(tenant, name)
        except StoreUnavailable:
            raise
        except TurnwireError as error:
            _log.warning("upkeep_failed", tenant=tenant, name=name, error=error.message)
        except Exception:
            _log.exception("upkeep_defect", tenant=tenant, name=name)
