"""One turn that this process runs or shows to somebody."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnwire.agent.log.turn_log import TurnLog
    from turnwire.agent.log.writer import TurnWriter
    from turnwire.agent.store.turns import TurnRow
    from turnwire.agent.turn.runner import TurnRunner


@dataclass(slots=True, eq=False)
class LiveTurn:
    """The log of a turn, and who runs it and reads it here.

    Without a task it is run elsewhere, or by nobody: then the log is what was last heard of it, and what counts is
    in the store.
    """

    tenant: str
    row: TurnRow
    log: TurnLog
    runner: TurnRunner | None = None
    writer: TurnWriter | None = None
    task: asyncio.Task[None] | None = None
    following: asyncio.Task[None] | None = None
    """Keeps the log of a turn up to date that is not run here, while somebody reads it."""
    lost: bool = False
    """True when another process may own it by now."""
    holders: int = 0
    """Readers and calls that use it now."""
    watchers: int = 0
    """Streams that show it now."""
    unwatched: asyncio.TimerHandle | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever changes what the turn does: cancels it, answers it, starts it again."""

    @property
    def key(self) -> tuple[str, str]:
        """Tenant and turn id."""
        return self.tenant, self.row.turn_id
