"""The queue of a session: the end of a turn starts the one that has waited longest, in the same commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turnwire.agent.log.writer import CEILING_STEP, FORMAT
from turnwire.agent.store import clock, events, inbox, ownership, sessions, turns
from turnwire.agent.turn.config import pin
from turnwire.agent.turn.runner import plan
from turnwire.agent.v1 import event_pb2, turn_pb2
from turnwire.fold import TERMINAL_STATUSES, TurnFold

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnwire.agent.live.lease import Lease
    from turnwire.agent.store.turns import TurnRow
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.runtime.settings import AgentSettings
    from turnwire.runtime.storage import Transaction

MAX_QUEUED = 16
"""So many turns wait in a session."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A turn whose turn has come."""

    row: TurnRow
    events: list[event_pb2.StepEvent]
    config: TurnConfig


class SessionQueue:
    """Starts queued turns, each once."""

    def __init__(self, settings: AgentSettings, lease: Lease) -> None:
        """What is started belongs to the holder of `lease`."""
        self.on_begun: Callable[[str, Begun], None] | None = None
        """Is called with a tenant and what was started, after the commit."""
        self.closed = False
        """True when this process is about to end: whoever looks next starts the next turn."""
        self._settings = settings
        self._lease = lease

    async def begin(self, tx: Transaction, tenant: str, session_id: str) -> Begun | None:
        """Starts the turn of a session that has waited longest, unless one is active."""
        if self.closed:
            return None
        for row in await turns.unfinished(tx, tenant, session_id):
            if row.status != turn_pb2.TURN_STATUS_QUEUED or row.format > FORMAT:
                return None
            begun = await self._begin(tx, tenant, row)
            if begun is not None and begun.row.status not in TERMINAL_STATUSES:
                return begun
        return None

    def begun(self, tenant: str, what: Any) -> None:
        """Has a turn run that was started."""
        if self.on_begun is not None:
            self.on_begun(tenant, what)

    async def _begin(self, tx: Transaction, tenant: str, row: TurnRow) -> Begun | None:
        assert row.pending_start is not None, f"turn {row.turn_id} is queued without its start"
        config = pin(await events.config(tx, tenant, row.config_digest), pause_seconds=self._settings.pause_seconds)
        stored = await events.of_turn(tx, tenant, row.turn_id)
        started = event_pb2.StepEvent.FromString(row.pending_start)
        started.event_time.CopyFrom(clock.now())
        fold = TurnFold(row.turn_id)
        for event in stored:
            fold.apply(event)
        number = fold.last_sequence
        planned, _ = plan(fold, config, [started])
        for event in planned:
            number += 1
            event.first_sequence = event.sequence = number
        taken = await ownership.begin(
            tx,
            tenant,
            row,
            instance_id=self._lease.instance_id,
            status=fold.turn.status,
            sequence_ceiling=number + CEILING_STEP,
        )
        if not taken:
            return None
        await events.append(tx, tenant, row.turn_id, planned)
        if fold.turn.status in TERMINAL_STATUSES:
            await inbox.clear(tx, tenant, row.turn_id)
            await sessions.touch(tx, tenant, row.session_id, clock.now_microseconds())
        now = await turns.get(tx, tenant, row.turn_id)
        assert now is not None
        return Begun(now, [*stored, *planned], config)
