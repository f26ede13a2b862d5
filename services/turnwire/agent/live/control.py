"""What others do to a turn, on any replica: cancel it, answer what it waits for. Only its owner appends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.live.recovery import recovered
from turnwire.agent.log.writer import draft
from turnwire.agent.store import inbox, requests, turns
from turnwire.agent.store.inbox import CANCEL, INPUT, Entry
from turnwire.agent.store.ownership import Claimed, Owner
from turnwire.agent.turn.held import held_results, results_body, taken_apart
from turnwire.agent.turn.inputs import fresh_inputs
from turnwire.agent.v1 import agent_service_pb2, event_pb2, turn_pb2
from turnwire.errors import NotFound, NotOwner, TurnwireError
from turnwire.ids import new_id
from turnwire.runtime.failpoints import Boundary, Failpoint

if TYPE_CHECKING:
    from turnwire.agent.live.live_turn import LiveTurn
    from turnwire.agent.live.peers import Peers
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.live.unbroken import Unbroken
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)

_ADDED = Failpoint("agent.inbox_added")
_TAKEN = Failpoint("agent.inbox_taken")
_REMOVAL = Boundary("agent.inbox_removed")
_CANCELLING = Failpoint("agent.cancelling")
_BURIAL = Boundary("agent.turn_buried")
_PAUSE = 0.05
_STARTS_SECONDS = 1.0
"""So long a turn of this process may be about to start."""
_PATIENCE_SECONDS = 30.0


class TurnControl:
    """Acts on turns, each from one caller at a time."""

    def __init__(self, store: Store, live: LiveTurns, peers: Peers, unbroken: Unbroken) -> None:
        """Acts on the live turns, on those that wait in the store, and through `peers` on those of other replicas."""
        self._unbroken = unbroken
        self._store = store
        self._live = live
        self._peers = peers

    async def cancel(
        self, tenant: str, request: agent_service_pb2.CancelTurnRequest
    ) -> agent_service_pb2.CancelTurnResponse:
        """Cancels a turn and returns when it has ended."""
        if request.allow_missing and not await self._exists_or_buried(tenant, request.turn_id):
            return agent_service_pb2.CancelTurnResponse(status=turn_pb2.TURN_STATUS_CANCELLED)
        turn = await self._unbroken.run(self._cancel(tenant, request))
        return agent_service_pb2.CancelTurnResponse(status=turn.status, calls=turn.cancelled_calls)

    async def submit(
        self, tenant: str, request: agent_service_pb2.SubmitTurnInputRequest
    ) -> agent_service_pb2.SubmitTurnInputResponse:
        """Takes the answers to what a turn waits for; once all are there the turn goes on."""
        return await self._unbroken.run(self._submit(tenant, request, asks=True))

    async def take_inbox(self, tenant: str, turn_id: str) -> None:
        """Takes in what lies in the inbox of a turn that this process runs, or that nobody does.

        Whoever put an input in looks at the log for what became of it: one that no longer fits is dropped.
        """
        await self._unbroken.run(self._take_inbox(tenant, turn_id))

    async def _take_inbox(self, tenant: str, turn_id: str) -> None:
        for entry in await self._store.read(lambda tx: inbox.of_turn(tx, tenant, turn_id)):
            await _TAKEN.reached()
            try:
                if entry.kind == CANCEL:
                    await self._cancel(tenant, agent_service_pb2.CancelTurnRequest.FromString(entry.body), asks=False)
                else:
                    request = agent_service_pb2.SubmitTurnInputRequest.FromString(entry.body)
                    await self._submit(tenant, request, asks=False)
            except NotOwner:
                return  # its new owner takes it in
            except TurnwireError as error:
                if error.retryable:
                    raise
                _log.info("inbox_entry_dropped", turn_id=turn_id, entry_id=entry.entry_id, error=error.message)
            entry_id = entry.entry_id
            async with _REMOVAL:
                await self._store.write(lambda tx, entry_id=entry_id: inbox.remove(tx, tenant, turn_id, entry_id))

    async def _cancel(
        self, tenant: str, request: agent_service_pb2.CancelTurnRequest, *, asks: bool = True
    ) -> turn_pb2.Turn:
        """Ends a turn as cancelled, unless it has ended, and returns it.

        Its owner is asked to. One that is not heard of is passed over; the next epoch is this process's.
        """
        entry = Entry(CANCEL, CANCEL, request.SerializeToString())
        silent_epoch: int | None = None
        begun = asyncio.get_running_loop().time()
        while True:
            async with self._live.opened(tenant, request.turn_id) as live:
                async with live.lock:
                    owner = await self._end(live, request.reason, entry, silent_epoch)
                    if live.log.fold.finished and not live.log.replaced:
                        return live.log.fold.turn
                if owner is None:
                    await asyncio.sleep(0)
                    continue
                if owner.instance_id == self._live.lease.instance_id:
                    # About to be started here; or a defect has left it lying.
                    await asyncio.sleep(_PAUSE)
                    if asyncio.get_running_loop().time() - begun > _STARTS_SECONDS:
                        silent_epoch = owner.epoch
                elif not asks:
                    raise NotOwner(request.turn_id, owner.instance_id)
                elif not await self._peers.deliver(tenant, owner.address, request.turn_id):
                    silent_epoch = owner.epoch

    async def _end(self, live: LiveTurn, reason: str, entry: Entry, silent_epoch: int | None) -> Owner | None:
        """Ends a turn here, or returns the owner who has to. The turn's lock is held."""
        await _CANCELLING.reached()
        if live.runner is not None and live.task is not None:
            live.runner.cancel(reason)
            await asyncio.wait([live.task])
        if live.log.replaced or (live.log.fold.finished and not live.log.replaced):
            return None
        outcome = await self._live.claim(live, over_epoch=silent_epoch, otherwise=entry)
        if isinstance(outcome, Owner):
            await _ADDED.reached()
            return outcome
        if isinstance(outcome, Claimed):
            turn = live.log.fold.turn
            runs = turn.status == turn_pb2.TURN_STATUS_RUNNING
            first = [recovered(live, released=outcome.released)] if runs else []
            self._live.start(live, await self._live.config_of(live), first, cancel=reason)
            if live.task is not None:
                await asyncio.wait([live.task])
        return None

    async def _submit(
        self, tenant: str, request: agent_service_pb2.SubmitTurnInputRequest, *, asks: bool
    ) -> agent_service_pb2.SubmitTurnInputResponse:
        named = agent_service_pb2.SubmitTurnInputRequest()
        named.CopyFrom(request)
        named.request_id = request.request_id or new_id("req")
        entry = Entry(named.request_id, INPUT, named.SerializeToString())
        begun = asyncio.get_running_loop().time()
        while True:
            async with self._live.opened(tenant, request.turn_id) as live:
                async with live.lock:
                    taken = await self._answer(live, named, entry)
                if not isinstance(taken, Owner):
                    if taken is not None:
                        return taken
                    continue
                if taken.instance_id != self._live.lease.instance_id:
                    if not asks:
                        raise NotOwner(request.turn_id, taken.instance_id)
                    await self._peers.deliver(tenant, taken.address, request.turn_id)
                if asyncio.get_running_loop().time() - begun > _PATIENCE_SECONDS:
                    raise NotOwner(request.turn_id, taken.instance_id)
                await asyncio.sleep(_PAUSE)

    async def _answer(
        self, live: LiveTurn, request: agent_service_pb2.SubmitTurnInputRequest, entry: Entry
    ) -> agent_service_pb2.SubmitTurnInputResponse | Owner | None:
        """Takes answers in here, or returns the owner who has to. None: look again. The turn's lock is held."""
        if live.task is not None and live.log.fold.awaits_input:
            # The pause is committed, its runner is about to end.
            await asyncio.wait([live.task])
        if live.task is None:
            await self._live.refresh(live)
        if not fresh_inputs(live.log.fold.turn, request.inputs):
            return _submitted(live)
        outcome = await self._live.claim(live, otherwise=entry)
        if not isinstance(outcome, Claimed):
            await _ADDED.reached()
            return outcome
        try:
            fresh = fresh_inputs(live.log.fold.turn, request.inputs)
            config = await self._live.config_of(live)
        except TurnwireError:
            await self._live.release(live)
            raise
        if not fresh:
            await self._live.release(live)
            return _submitted(live)
        told, results = taken_apart(fresh, config.holds_results)
        if results:
            live.row.held_input = results_body({**held_results(live.row.held_input), **results})
        received = event_pb2.TurnInputReceived(request_id=request.request_id, inputs=told, held_call_ids=results)
        last, log = live.log.last_sequence, live.log
        self._live.start(live, config, [draft(request.turn_id, "turn_input_received", received)])
        await _until(live, last)
        return _submitted(live) if log.last_sequence > last else None

    async def _exists_or_buried(self, tenant: str, turn_id: str) -> bool:
        """True when there is the turn; else its id is kept from use for a while."""

        async def unit(tx: Transaction) -> bool:
            if await turns.get(tx, tenant, turn_id) is not None:
                return True
            if await requests.tombstone(tx, tenant, turn_id) != requests.DELETED:
                await requests.bury(tx, tenant, turn_id, requests.CANCELLED)
                return False
            raise NotFound("turn", turn_id)

        async with _BURIAL:
            return await self._store.write(unit)


async def _until(live: LiveTurn, sequence: int) -> None:
    """Waits until the log has an event after `sequence`, or the turn is no longer run here."""
    while live.log.last_sequence <= sequence and live.task is not None:
        changed = live.log.changed()
        try:
            await asyncio.wait([changed, live.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            live.log.forget(changed)


def _submitted(live: LiveTurn) -> agent_service_pb2.SubmitTurnInputResponse:
    turn = live.log.fold.turn
    sequence = 0
    for event in live.log.after(0, live.log.next_sequence):
        if event.WhichOneof("payload") == "turn_input_received":
            sequence = event.sequence
    return agent_service_pb2.SubmitTurnInputResponse(
        status=turn.status, sequence=sequence, remaining=turn.awaited_input.requests
    )
