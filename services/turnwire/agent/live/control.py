"""What others do to a turn: cancel it, answer what it waits for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.store import requests, turns
from turnwire.agent.turn.inputs import fresh_inputs
from turnwire.agent.turn.runner import cancelled
from turnwire.agent.v1 import agent_service_pb2, event_pb2, turn_pb2
from turnwire.errors import NotFound
from turnwire.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.live.live_turn import LiveTurn
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.runtime.storage import Store, Transaction


class TurnControl:
    """Acts on turns, each from one caller at a time."""

    def __init__(self, store: Store, live: LiveTurns) -> None:
        """Acts on the live turns, and on those that wait in the store."""
        self._store = store
        self._live = live

    async def cancel(
        self, tenant: str, request: agent_service_pb2.CancelTurnRequest
    ) -> agent_service_pb2.CancelTurnResponse:
        """Cancels a turn and returns when it has ended."""
        if request.allow_missing and not await self._exists_or_buried(tenant, request.turn_id):
            return agent_service_pb2.CancelTurnResponse(status=turn_pb2.TURN_STATUS_CANCELLED)
        async with self._live.opened(tenant, request.turn_id) as live, live.lock:
            await self.end(live, request.reason)
            turn = live.log.fold.turn
            return agent_service_pb2.CancelTurnResponse(status=turn.status, calls=turn.cancelled_calls)

    async def end(self, live: LiveTurn, reason: str) -> None:
        """Ends a turn as cancelled, unless it has ended. The turn's lock is held."""
        if live.log.fold.finished:
            return
        if live.runner is not None and live.task is not None:
            live.runner.cancel(reason)
            await asyncio.wait([live.task])
        if live.log.fold.finished:
            return
        # It waits for input, or paused just now: this process takes it to its end.
        await self._go_on(live, [cancelled(live.log.fold.turn, reason)])
        if live.task is not None:
            await asyncio.wait([live.task])

    async def submit(
        self, tenant: str, request: agent_service_pb2.SubmitTurnInputRequest
    ) -> agent_service_pb2.SubmitTurnInputResponse:
        """Takes the answers to what a turn waits for; once all are there the turn goes on."""
        async with self._live.opened(tenant, request.turn_id) as live, live.lock:
            if live.task is not None and live.log.fold.awaits_input:
                # The pause is committed, its runner is about to end.
                await asyncio.wait([live.task])
            turn = live.log.fold.turn
            fresh = fresh_inputs(turn, request.inputs)
            if not fresh:
                return _submitted(live)
            received = event_pb2.TurnInputReceived(request_id=request.request_id or new_id("req"), inputs=fresh)
            await self._go_on(live, [draft(request.turn_id, "turn_input_received", received)])
            await _until(live, live.log.last_sequence)
            return _submitted(live)

    async def _go_on(self, live: LiveTurn, first: Sequence[event_pb2.StepEvent]) -> None:
        config = await self._live.config_of(live)
        await self._live.take_over(live)
        self._live.start(live, config, first)

    async def _exists_or_buried(self, tenant: str, turn_id: str) -> bool:
        """True when there is the turn; else its id is kept from use for a while."""

        async def unit(tx: Transaction) -> bool:
            if await turns.get(tx, tenant, turn_id) is not None:
                return True
            if await requests.tombstone(tx, tenant, turn_id) != requests.DELETED:
                await requests.bury(tx, tenant, turn_id, requests.CANCELLED)
                return False
            raise NotFound("turn", turn_id)

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
