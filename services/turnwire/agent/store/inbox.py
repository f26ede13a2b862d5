"""What others want of a turn, as rows, until its owner has taken it into the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction

CANCEL = "cancel"
INPUT = "input"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that somebody wants."""

    entry_id: str
    """Unique in its turn: a repeat adds nothing."""
    kind: str
    body: bytes
    """The request, as it came."""


async def add(tx: Transaction, tenant: str, turn_id: str, entry: Entry) -> None:
    """Puts an entry in."""
    await tx.execute(
        "INSERT INTO turn_inbox (tenant, turn_id, entry_id, kind, body, create_time) VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (tenant, turn_id, entry_id) DO NOTHING",
        tenant,
        turn_id,
        entry.entry_id,
        entry.kind,
        entry.body,
        await tx.now(),
    )


async def of_turn(tx: Transaction, tenant: str, turn_id: str) -> list[Entry]:
    """Returns the entries of a turn, in order."""
    rows = await tx.fetch(
        "SELECT entry_id, kind, body FROM turn_inbox WHERE tenant = $1 AND turn_id = $2 ORDER BY create_time, entry_id",
        tenant,
        turn_id,
    )
    return [Entry(str(row[0]), str(row[1]), cast("bytes", row[2])) for row in rows]


async def remove(tx: Transaction, tenant: str, turn_id: str, entry_id: str) -> None:
    """Takes an entry out."""
    await tx.execute(
        "DELETE FROM turn_inbox WHERE tenant = $1 AND turn_id = $2 AND entry_id = $3", tenant, turn_id, entry_id
    )


async def clear(tx: Transaction, tenant: str, turn_id: str) -> None:
    """Empties the inbox of a turn that has ended."""
    await tx.execute("DELETE FROM turn_inbox WHERE tenant = $1 AND turn_id = $2", tenant, turn_id)


async def waiting(tx: Transaction, instance_id: str) -> list[tuple[str, str]]:
    """Returns (tenant, turn id) of the turns with an inbox that a process owns, or that nobody who lives owns."""
    rows = await tx.fetch(
        "SELECT DISTINCT i.tenant, i.turn_id FROM turn_inbox i JOIN turns t"
        " ON t.tenant = i.tenant AND t.turn_id = i.turn_id WHERE t.owner = $1 OR NOT EXISTS"
        " (SELECT 1 FROM leases l WHERE l.instance_id = t.owner AND l.expire_time > $2) LIMIT 500",
        instance_id,
        await tx.now(),
    )
    return [(str(row[0]), str(row[1])) for row in rows]
