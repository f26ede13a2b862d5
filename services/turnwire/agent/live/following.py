"""A turn that another replica runs, read here: its owner is followed, and what is stored is there in any case."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import structlog

from turnwire.agent.log.reading import read_turn
from turnwire.agent.store import ownership
from turnwire.agent.store.ownership import TOPIC, Owner
from turnwire.agent.v1 import turn_owner_service_pb2 as messages
from turnwire.agent.v1 import turn_pb2
from turnwire.errors import TurnwireError, from_rpc_error
from turnwire.fold import TERMINAL_STATUSES, SequenceGapError
from turnwire.runtime.channels import upstream
from turnwire.runtime.failpoints import Failpoint
from turnwire.runtime.identity import acting_as

if TYPE_CHECKING:
    from turnwire.agent.live.live_turn import LiveTurn
    from turnwire.agent.live.peers import Peers
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.live.takeover import Takeover
    from turnwire.agent.v1 import event_pb2
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)

_FOLLOWS = Failpoint("agent.owner_followed")
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_LOOK_SECONDS = 1.0
"""A stream that brought nothing for so long is checked against the store."""


@dataclass(frozen=True, slots=True)
class _State:
    status: turn_pb2.TurnStatus.ValueType
    epoch: int
    owner: Owner | None


class Following:
    """Keeps the logs of such turns up to date for as long as somebody reads them here."""

    def __init__(self, store: Store, live: LiveTurns, takeover: Takeover, peers: Peers) -> None:
        """A turn that turns out to have no owner is taken over."""
        self._store = store
        self._live = live
        self._takeover = takeover
        self._peers = peers
        self._hints: dict[str, asyncio.Event] = {}
        self._end_listening = store.listen(TOPIC, self._hear)

    def close(self) -> None:
        """Listens no longer."""
        self._end_listening()

    def begin(self, live: LiveTurn) -> None:
        """Follows a turn from now on."""
        if self._live.lease.exclusive:
            return  # there is no other replica: what happens to the turn happens here
        live.following = asyncio.create_task(self._follow(live), name=f"follow {live.row.turn_id}")

    async def _follow(self, live: LiveTurn) -> None:
        log = live.log
        hint = self._hints.setdefault(live.row.turn_id, asyncio.Event())
        pause = _FIRST_PAUSE
        try:
            with acting_as(live.tenant, trace=log.fold.turn.trace_id):
                while live.log is log and not log.fold.finished:
                    hint.clear()
                    if await self._step(live):
                        pause = _FIRST_PAUSE
                        continue
                    try:
                        async with asyncio.timeout(pause):
                            await hint.wait()
                        pause = _FIRST_PAUSE
                    except TimeoutError:
                        pause = min(_LONGEST_PAUSE, pause * 1.5)
        finally:
            if live.following is asyncio.current_task():
                live.following = None
            if self._hints.get(live.row.turn_id) is hint:
                del self._hints[live.row.turn_id]

    async def _step(self, live: LiveTurn) -> bool:
        """Reads on, in the store and at the owner; False when there is nothing to be had now."""
        before = live.log.last_sequence
        try:
            state = await self._look(live)
            if state is None:
                return False
            if state.status == turn_pb2.TURN_STATUS_RUNNING and state.owner is None:
                await self._takeover.recover(live.tenant, live.row.turn_id)
            elif state.owner is not None and state.owner.instance_id != self._live.lease.instance_id:
                await self._read_from(live, state.owner)
        except TurnwireError as error:
            _log.info("turn_not_followed", turn_id=live.row.turn_id, error=error.message)
        except grpc.RpcError as error:
            told = from_rpc_error(error, service="agent").message
            _log.info("turn_not_followed", turn_id=live.row.turn_id, error=told)
        except SequenceGapError as error:
            # The owner is at another place than the store, for now: what is stored closes the gap.
            _log.warning("turn_not_followed", turn_id=live.row.turn_id, error=str(error))
        return live.log.last_sequence > before

    async def _look(self, live: LiveTurn) -> _State | None:
        """Takes in what is stored; returns who owns the turn now, None when it is gone or run here."""

        async def unit(tx: Transaction) -> tuple[_State, list[event_pb2.StepEvent], int] | None:
            found = await read_turn(tx, live.tenant, live.row.turn_id, after=last)
            if found is None:
                return None
            row, events = found
            return _State(row.status, row.epoch, await ownership.owner_of(tx, row)), events, row.sequence_ceiling

        log = live.log
        last = log.last_sequence
        found = await self._store.read(unit)
        if found is None or live.task is not None or live.log is not log:
            return None
        state, events, ceiling = found
        log.mirror(events, ceiling)
        return None if state.status in TERMINAL_STATUSES else state

    async def _read_from(self, live: LiveTurn, owner: Owner) -> None:
        """Takes in what the owner shows, until its stream ends or the turn is another's."""
        reading = asyncio.create_task(self._read(live, owner), name=f"read {live.row.turn_id} from its owner")
        try:
            seen = live.log.last_sequence
            while not reading.done():
                await asyncio.wait({reading}, timeout=_LOOK_SECONDS)
                if reading.done() or live.log.last_sequence > seen:
                    seen = live.log.last_sequence
                    continue
                # Silent: the owner may wait for its model, or be gone for good.
                try:
                    state = await self._look(live)
                except TurnwireError:
                    continue  # the store is away: the owner may still be there
                if state is None or state.owner is None or state.epoch != owner.epoch:
                    return
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, live: LiveTurn, owner: Owner) -> None:
        log = live.log
        request = messages.FollowTurnRequest(turn_id=live.row.turn_id, after_sequence=log.last_sequence)
        async with self._peers.reached(owner.address) as stub, upstream(stub.FollowTurn(request)) as call:
            await _FOLLOWS.reached()
            async for event in call:
                if event.WhichOneof("payload") != "heartbeat":
                    log.mirror([event])

    def _hear(self, turn_id: str) -> None:
        hint = self._hints.get(turn_id)
        if hint is not None:
            hint.set()
