"""The turns of this process: each is there once, for as long as somebody runs or reads it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.live.live_turn import LiveTurn
from turnwire.agent.log.reading import read_turn
from turnwire.agent.log.turn_log import TurnLog
from turnwire.agent.log.writer import TurnWriter
from turnwire.agent.store import events as stored_events
from turnwire.agent.store import turns as stored_turns
from turnwire.agent.turn.config import TurnConfig, pin
from turnwire.agent.turn.runner import TurnRunner
from turnwire.agent.turn.workers import Stubs, workers
from turnwire.agent.v1 import agent_service_pb2
from turnwire.errors import Draining, NotFound, NotOwner
from turnwire.runtime.identity import acting_as

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from turnwire.agent.store.turns import TurnRow
    from turnwire.agent.turn.history import History
    from turnwire.agent.v1 import agent_pb2, event_pb2, turn_pb2
    from turnwire.common.v1 import message_pb2
    from turnwire.errors import TurnwireError
    from turnwire.runtime.settings import AgentSettings
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)


class LiveTurns:
    """Opens turns, runs them, and lets go of them."""

    def __init__(
        self,
        store: Store,
        stubs: Stubs,
        history: History,
        settings: AgentSettings,
        instance_id: str,
    ) -> None:
        """Runs turns as the owner `instance_id`."""
        self.instance_id = instance_id
        self._store = store
        self._stubs = stubs
        self._history = history
        self._settings = settings
        self._turns: dict[tuple[str, str], LiveTurn] = {}
        self._loading: dict[tuple[str, str], asyncio.Task[LiveTurn]] = {}
        self._draining = False

    def __len__(self) -> int:
        """How many turns are held in memory."""
        return len(self._turns)

    @property
    def running(self) -> int:
        """How many turns are running in this process."""
        return sum(1 for live in self._turns.values() if live.task is not None)

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
        try:
            yield
        finally:
            live.watchers -= 1
            self._note_unwatched(live)

    def adopt(self, live: LiveTurn) -> LiveTurn:
        """Takes a turn in that was just stored; returns the one that a quick reader may have read already."""
        return self._turns.setdefault(live.key, live)

    def get(self, tenant: str, turn_id: str) -> LiveTurn | None:
        """Returns a turn if it is in memory."""
        return self._turns.get((tenant, turn_id))

    def start(self, live: LiveTurn, config: TurnConfig, first: Sequence[event_pb2.StepEvent] = ()) -> TurnRunner:
        """Runs a turn from where it is, with `first` as what happens next."""
        assert live.task is None
        writer = TurnWriter(self._store, live.log, live.tenant, live.row.session_id, self.instance_id, live.row.epoch)
        doing = workers(
            self._stubs, writer, config, live.row, inference_seconds=self._settings.inference_timeout_seconds
        )

        async def earlier(turn: turn_pb2.Turn) -> list[message_pb2.Message]:
            return await self._history.before(live.tenant, turn.session_id, turn.ordinal)

        live.runner = TurnRunner(live.log, writer, config, doing, earlier)
        live.task = asyncio.create_task(self._run(live, live.runner, first), name=f"turn {live.row.turn_id}")
        self._note_unwatched(live)
        return live.runner

    async def config_of(self, live: LiveTurn) -> TurnConfig:
        """Returns the configuration that a turn was accepted with."""

        async def unit(tx: Transaction) -> agent_pb2.AgentConfig:
            return await stored_events.config(tx, live.tenant, live.row.config_digest)

        return self.pinned(await self._store.read(unit))

    def pinned(self, config: agent_pb2.AgentConfig) -> TurnConfig:
        """Returns a configuration as turns of this process run under it."""
        return pin(config, pause_seconds=self._settings.pause_seconds)

    async def take_over(self, live: LiveTurn) -> None:
        """Becomes the owner of a turn that has none that runs, under the next epoch.

        Raises:
            NotOwner: somebody else was quicker.
        """
        epoch = live.row.epoch

        async def unit(tx: Transaction) -> None:
            claimed = await stored_turns.claim(tx, live.tenant, live.row.turn_id, owner=self.instance_id, epoch=epoch)
            if not claimed:
                raise NotOwner(live.row.turn_id)

        await self._store.write(unit)
        live.row.epoch = epoch + 1
        live.row.owner = self.instance_id

    async def close(self, grace_seconds: float) -> None:
        """Lets turns finish for a while, then leaves the rest to the next owner and ends all streams."""
        self._draining = True
        tasks = [live.task for live in self._turns.values() if live.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for live in list(self._turns.values()):
            if live.task is not None:
                live.task.cancel()
            if live.unwatched is not None:
                live.unwatched.cancel()
            live.log.interrupt(Draining(service="agent"))
        await asyncio.gather(*tasks, return_exceptions=True)

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

    async def _run(self, live: LiveTurn, runner: TurnRunner, first: Sequence[event_pb2.StepEvent]) -> None:
        # After a pause or a restart another call goes on with the turn; its trace is the one it began in.
        trace = live.log.fold.turn.trace_id
        structlog.contextvars.bind_contextvars(turn_id=live.row.turn_id, trace_id=trace)
        try:
            with acting_as(live.tenant, trace=trace):
                await runner.run(first)
        except NotOwner as error:
            _log.warning("turn_lost", turn_id=live.row.turn_id, epoch=live.row.epoch)
            self._forget(live, error)
        except asyncio.CancelledError:
            if not self._draining:
                raise
        except Exception:
            _log.exception("turn_defect", turn_id=live.row.turn_id)
            self._forget(live, Draining(service="agent"))
        finally:
            live.task = None
            live.runner = None
            self._release(live)

    def _forget(self, live: LiveTurn, error: TurnwireError) -> None:
        """Drops a log that may hold what was never stored; its readers come back and find the stored one."""
        live.log.interrupt(error)
        if self._turns.get(live.key) is live:
            del self._turns[live.key]

    def _release(self, live: LiveTurn) -> None:
        if live.holders == 0 and live.task is None and self._turns.get(live.key) is live:
            del self._turns[live.key]
            if live.unwatched is not None:
                live.unwatched.cancel()
                live.unwatched = None

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
