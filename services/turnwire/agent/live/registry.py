"""The turns of this process: each is there once, for as long as somebody runs or reads it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.live.live_turn import LiveTurn
from turnwire.agent.log.reading import read_turn, whole
from turnwire.agent.log.turn_log import TurnLog
from turnwire.agent.log.writer import FORMAT, TurnWriter
from turnwire.agent.store import events as stored_events
from turnwire.agent.store import inbox, ownership
from turnwire.agent.store.ownership import Claimed, Owner
from turnwire.agent.turn.config import TurnConfig, pin
from turnwire.agent.turn.runner import TurnRunner
from turnwire.agent.turn.stopping import Stopping
from turnwire.agent.turn.workers import Stubs, workers
from turnwire.agent.v1 import agent_service_pb2
from turnwire.errors import Draining, NotFound, NotOwner, StoreUnavailable, TurnwireError
from turnwire.runtime.failpoints import Boundary, Failpoint
from turnwire.runtime.identity import acting_as

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from turnwire.agent.live.lease import Lease
    from turnwire.agent.live.session_queue import SessionQueue
    from turnwire.agent.store.inbox import Entry
    from turnwire.agent.store.turns import TurnRow
    from turnwire.agent.turn.history import History
    from turnwire.agent.v1 import agent_pb2, event_pb2, turn_pb2
    from turnwire.common.v1 import message_pb2
    from turnwire.runtime.settings import AgentSettings
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)

_CLAIM = Boundary("agent.claim")
_RELEASE = Boundary("agent.release")
_DRAINING = Failpoint("agent.draining")


class LiveTurns:
    """Opens turns, runs them, and lets go of them."""

    def __init__(
        self, store: Store, stubs: Stubs, history: History, settings: AgentSettings, lease: Lease, queue: SessionQueue
    ) -> None:
        """Runs turns under the lease of this process; `queue` starts the next turn of a session at the end of one."""
        self.lease = lease
        self.on_watched: Callable[[LiveTurn], None] | None = None
        """Is called with turns that somebody reads here, and that are not run here."""
        self._store = store
        self._stubs = stubs
        self._stopping = Stopping(stubs.tool_executor)
        self._history = history
        self._settings = settings
        self._queue = queue
        self._turns: dict[tuple[str, str], LiveTurn] = {}
        self._loading: dict[tuple[str, str], asyncio.Task[LiveTurn]] = {}
        self._draining = False

    def __len__(self) -> int:
        """How many turns are held in memory."""
        return len(self._turns)

    @property
    def draining(self) -> bool:
        """True when this process is about to end, and takes nothing new."""
        return self._draining

    @property
    def running(self) -> list[LiveTurn]:
        """The turns that run in this process."""
        return [live for live in self._turns.values() if live.task is not None]

    def runs(self, tenant: str, turn_id: str) -> bool:
        """True when a task of this process runs the turn."""
        live = self._turns.get((tenant, turn_id))
        return live is not None and live.task is not None

    @asynccontextmanager
    async def opened(self, tenant: str, turn_id: str) -> AsyncGenerator[LiveTurn]:
        """Gives a turn, in memory for the time of the context.

        Raises:
            NotFound: the tenant has no such turn.
        """
        live = await self._load(tenant, turn_id)
        live.holders += 1
        try:
            yield live
        finally:
            live.holders -= 1
            self._release(live)

    @asynccontextmanager
    async def watched(self, live: LiveTurn) -> AsyncGenerator[None]:
        """Counts a stream that shows the turn; `on_disconnect` goes by that."""
        live.watchers += 1
        if live.unwatched is not None:
            live.unwatched.cancel()
            live.unwatched = None
        self._note_watched(live)
        try:
            yield
        finally:
            live.watchers -= 1
            self._note_unwatched(live)
            if not live.watchers and live.following is not None:
                live.following.cancel()

    def adopt(self, live: LiveTurn) -> LiveTurn | None:
        """Takes a turn in that was just stored; returns the one that a quick reader may have read already.

        None: it runs. What is stored is heard of late at times, and somebody has found it before without a task.
        """
        present = self._turns.setdefault(live.key, live)
        if present is live:
            return live
        if present.task is not None or present.row.epoch > live.row.epoch:
            return None
        self._take_place(present, live.row, live.log)
        return present

    def get(self, tenant: str, turn_id: str) -> LiveTurn | None:
        """Returns a turn if it is in memory."""
        return self._turns.get((tenant, turn_id))

    async def claim(
        self, live: LiveTurn, *, over_epoch: int | None = None, otherwise: Entry | None = None
    ) -> Claimed | Owner | None:
        """Makes a turn this process's own, under the next epoch; its lock is held.

        One whose owner lives stays where it is, and the owner is returned; `otherwise` is put into its inbox. One of
        the epoch `over_epoch` is taken from a living owner too. None: it has ended.

        Raises:
            NotOwner: a later version has stored it, or others were quicker.
            Draining: this process is about to end.
            StoreUnavailable: the database cannot be used, or this process may not own anything now.
        """
        if self._draining:
            raise Draining(service="agent")
        if not self.lease.good:
            raise StoreUnavailable("agent", "this replica waits for its lease to be renewed")
        turn_id = live.row.turn_id

        async def unit(tx: Transaction) -> tuple[Claimed | Owner | None, list[event_pb2.StepEvent]]:
            outcome = await ownership.claim(
                tx,
                live.tenant,
                turn_id,
                instance_id=self.lease.instance_id,
                known_format=FORMAT,
                over_epoch=over_epoch,
            )
            if isinstance(outcome, Owner):
                if otherwise is not None:
                    await inbox.add(tx, live.tenant, turn_id, otherwise)
                return outcome, []
            return outcome, whole(turn_id, await stored_events.of_turn(tx, live.tenant, turn_id))

        async with _CLAIM:
            outcome, stored = await self._store.write(unit)
        if isinstance(outcome, Claimed):
            row = outcome.row
            self._take_place(live, row, TurnLog.stored(turn_id, stored, row.sequence_ceiling))
        elif outcome is None:
            # Whoever reads it here has not heard of its end yet.
            live.log.mirror(stored)
        return outcome

    def take(self, live: LiveTurn, row: TurnRow, stored: Sequence[event_pb2.StepEvent]) -> None:
        """Goes on with a turn as it was stored just now under this process's name."""
        self._take_place(live, row, TurnLog.stored(row.turn_id, stored, row.sequence_ceiling))

    async def refresh(self, live: LiveTurn) -> None:
        """Takes in what the store has of a turn that is not run here."""
        log, last = live.log, live.log.last_sequence
        found = await self._store.read(lambda tx: read_turn(tx, live.tenant, live.row.turn_id, after=last))
        if found is not None and live.task is None and live.log is log:
            live.row, events = found
            live.log.mirror(events, live.row.sequence_ceiling)

    async def release(self, live: LiveTurn) -> None:
        """Lets go of a turn that was claimed: whoever wants to may have it at once."""
        async with _RELEASE:
            await self._store.write(
                lambda tx: ownership.release(tx, live.tenant, live.row.turn_id, epoch=live.row.epoch)
            )

    def start(
        self,
        live: LiveTurn,
        config: TurnConfig,
        first: Sequence[event_pb2.StepEvent] = (),
        *,
        cancel: str | None = None,
    ) -> None:
        """Runs a turn from where it is, with `first` as what happens next; with `cancel` to its end as cancelled."""
        assert live.task is None
        live.log.show_while(lambda: self.lease.good)
        writer = live.writer = TurnWriter(
            self._store,
            live.log,
            live.tenant,
            live.row.session_id,
            live.row.epoch,
            lit=self.lease.lit,
            successor=self._queue,
            held=live.row.held_input,
        )
        doing = workers(
            self._stubs,
            writer,
            config,
            live.row,
            self._stopping,
            inference_seconds=self._settings.inference_timeout_seconds,
        )

        async def earlier(turn: turn_pb2.Turn) -> list[message_pb2.Message]:
            return await self._history.before(live.tenant, turn.session_id, turn.ordinal)

        live.runner = TurnRunner(live.log, writer, config, doing, earlier)
        if cancel is not None:
            live.runner.cancel(cancel)
        live.lost = False
        self._end_following(live)  # of one that came while the turn was claimed
        live.task = asyncio.create_task(self._run(live, live.runner, first), name=f"turn {live.row.turn_id}")
        self._note_unwatched(live)

    async def config_of(self, live: LiveTurn) -> TurnConfig:
        """Returns the configuration that a turn was accepted with."""

        async def unit(tx: Transaction) -> agent_pb2.AgentConfig:
            return await stored_events.config(tx, live.tenant, live.row.config_digest)

        return self.pinned(await self._store.read(unit))

    def pinned(self, config: agent_pb2.AgentConfig) -> TurnConfig:
        """Returns a configuration as turns of this process run under it."""
        return pin(config, pause_seconds=self._settings.pause_seconds)

    def lose(self, live: LiveTurn) -> None:
        """Stops running a turn that may be another's; its readers here go on with what the new owner writes."""
        live.lost = True
        if live.writer is not None:
            live.writer.give_up()
        if live.task is not None:
            live.task.cancel()
        self._drop(live)

    def lose_all(self) -> None:
        """Stops running all turns: the lease has ended."""
        for live in self.running:
            _log.warning("turn_lost", turn_id=live.row.turn_id, epoch=live.row.epoch)
            self.lose(live)

    def show_all(self) -> None:
        """Has all readers look again: the lease is good."""
        for live in self.running:
            live.log.wake()

    async def drain(self, grace_seconds: float) -> None:
        """Lets go of all turns, and has all streams resume elsewhere.

        Where others can go on with them, turns are released at their next boundary; where nobody can, they may end.
        What takes longer than the grace is cut.
        """
        self._draining = True
        await _DRAINING.reached()
        running = self.running
        for live in list(self._turns.values()):
            if live.task is None:
                live.log.interrupt(Draining(service="agent"))
        if not self.lease.exclusive:
            for live in running:
                if live.runner is not None:
                    live.runner.release()
        await asyncio.gather(*(self._leave(live, grace_seconds) for live in running))

    async def close(self) -> None:
        """Ends what is left."""
        await self.drain(0)
        left = [live.following for live in self._turns.values() if live.following is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._stopping.close()

    async def _leave(self, live: LiveTurn, grace_seconds: float) -> None:
        task = live.task
        if task is not None:
            await asyncio.wait({task}, timeout=grace_seconds)
            task.cancel()
            if live.writer is not None:
                live.writer.give_up()
            await asyncio.gather(task, return_exceptions=True)
        if live.unwatched is not None:
            live.unwatched.cancel()
        if not live.log.fold.finished and not live.log.fold.awaits_input and not live.lost:
            try:
                await self.release(live)
            except TurnwireError as error:
                # It is taken over when the lease ends.
                _log.warning("turn_not_released", turn_id=live.row.turn_id, error=error.message)
        live.log.interrupt(Draining(service="agent"))

    async def _load(self, tenant: str, turn_id: str) -> LiveTurn:
        key = (tenant, turn_id)
        live = self._turns.get(key)
        if live is not None:
            return live
        # Two who ask for one turn at once must get the same log, so it is read once.
        loading = self._loading.get(key)
        if loading is None:
            loading = asyncio.create_task(self._read(tenant, turn_id), name=f"read {turn_id}")
            self._loading[key] = loading
            loading.add_done_callback(lambda _: self._loading.pop(key, None))
        live = await asyncio.shield(loading)
        return self._turns.setdefault(key, live)

    async def _read(self, tenant: str, turn_id: str) -> LiveTurn:
        async def unit(tx: Transaction) -> tuple[TurnRow, list[event_pb2.StepEvent]] | None:
            return await read_turn(tx, tenant, turn_id)

        found = await self._store.read(unit)
        if found is None:
            raise NotFound("turn", turn_id)
        row, events = found
        log = TurnLog.stored(turn_id, events, row.sequence_ceiling)
        if self._draining:
            log.interrupt(Draining(service="agent"))
        return LiveTurn(tenant=tenant, row=row, log=log)

    def _take_place(self, live: LiveTurn, row: TurnRow, log: TurnLog) -> None:
        """Gives a turn the log that this process goes on with; who read the last one reads on in it."""
        last, live.row, live.log = live.log, row, log
        self._end_following(live)
        last.replace()

    def _end_following(self, live: LiveTurn) -> None:
        if live.following is not None:
            live.following.cancel()
        live.following = None

    async def _run(self, live: LiveTurn, runner: TurnRunner, first: Sequence[event_pb2.StepEvent]) -> None:
        # After a pause or a restart another call goes on with the turn; its trace is the one it began in.
        trace = live.log.fold.turn.trace_id
        structlog.contextvars.bind_contextvars(turn_id=live.row.turn_id, trace_id=trace)
        try:
            with acting_as(live.tenant, trace=trace):
                await runner.run(first)
        except NotOwner:
            _log.warning("turn_lost", turn_id=live.row.turn_id, epoch=live.row.epoch)
            live.lost = True
            self._drop(live)
        except asyncio.CancelledError:
            if not self._draining and not live.lost:
                raise
        except Exception:
            _log.exception("turn_defect", turn_id=live.row.turn_id)
            self._drop(live)
        finally:
            live.task = None
            live.runner = None
            # What is left to see was committed.
            live.log.show_while(None)
            live.log.wake()
            self._note_watched(live)
            self._release(live)

    def _drop(self, live: LiveTurn) -> None:
        """Drops a log that may hold what was never stored; its readers go on with the stored one."""
        live.log.replace()
        if self._turns.get(live.key) is live:
            del self._turns[live.key]

    def _release(self, live: LiveTurn) -> None:
        if live.holders == 0 and live.task is None and self._turns.get(live.key) is live:
            del self._turns[live.key]
            if live.unwatched is not None:
                live.unwatched.cancel()
                live.unwatched = None

    def _note_watched(self, live: LiveTurn) -> None:
        """Has the turn followed where it is run, while somebody reads it here."""
        if (
            live.watchers
            and live.task is None
            and live.following is None
            and not live.lost
            and not live.log.fold.finished
            and not self._draining
            and self.on_watched is not None
        ):
            self.on_watched(live)

    def _note_unwatched(self, live: LiveTurn) -> None:
        cancels = live.row.disconnect_policy == agent_service_pb2.DISCONNECT_POLICY_CANCEL
        if not cancels or live.watchers or live.task is None or live.unwatched is not None:
            return
        seconds = self._settings.disconnect_grace_seconds
        live.unwatched = asyncio.get_running_loop().call_later(seconds, self._cancel_unwatched, live)

    def _cancel_unwatched(self, live: LiveTurn) -> None:
        live.unwatched = None
        if live.watchers == 0 and live.runner is not None:
            live.runner.cancel(f"nobody watched it for {self._settings.disconnect_grace_seconds:g} s")
