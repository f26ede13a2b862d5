"""Who owns a turn: every append names the epoch of its owner, and an owner is a process with a lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnwire.agent.store import leases, turns
from turnwire.errors import NotFound, NotOwner
from turnwire.fold import TERMINAL_STATUSES

if TYPE_CHECKING:
    from turnwire.agent.store.turns import TurnRow
    from turnwire.runtime.storage import Transaction

TOPIC = "turns"
"""Where a turn's id is told when its owner changes."""
_RACES = 3


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that lives and has a turn."""

    instance_id: str
    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A turn that was just taken over."""

    row: TurnRow
    """As it is now: with the new owner and the new epoch."""
    released: bool
    """True when its last owner had let go of it, or it had none."""


async def owner_of(tx: Transaction, row: TurnRow) -> Owner | None:
    """Returns the owner of a turn, or None when it has none that lives."""
    address = await leases.address_of(tx, row.owner) if row.owner else None
    return Owner(row.owner, address, row.epoch) if address is not None else None


async def claim(
    tx: Transaction, tenant: str, turn_id: str, *, instance_id: str, known_format: int, over_epoch: int | None = None
) -> Claimed | Owner | None:
    """Takes a turn over under the next epoch, unless its owner lives: then that is returned. None: it has ended.

    A living owner is passed over when its epoch is `over_epoch`. Who has no lease by the clock of the database takes
    nothing: all leases have ended at once where that clock was set, and replicas would take turns from one another.

    Raises:
        NotFound: there is no such turn.
        NotOwner: a later version has stored it, others were quicker again and again, or `instance_id` has no lease.
    """
    for _ in range(_RACES):
        row = await turns.get(tx, tenant, turn_id)
        if row is None:
            raise NotFound("turn", turn_id)
        if row.status in TERMINAL_STATUSES:
            return None
        owner = await owner_of(tx, row)
        if owner is not None and row.epoch != over_epoch:
            return owner
        if row.format > known_format:
            raise NotOwner(turn_id, row.owner)
        if await leases.address_of(tx, instance_id) is None:
            break
        changed = await tx.execute(
            "UPDATE turns SET owner = $3, epoch = epoch + 1"
            " WHERE tenant = $1 AND turn_id = $2 AND epoch = $4 AND status IN (1, 2, 3)",
            tenant,
            turn_id,
            instance_id,
            row.epoch,
        )
        if changed:
            # Its last owner may have appended since it was read; from here on it cannot.
            claimed = await turns.get(tx, tenant, turn_id)
            assert claimed is not None
            await tx.notify(TOPIC, turn_id)
            return Claimed(claimed, released=not row.owner)
    raise NotOwner(turn_id)


async def advance(
    tx: Transaction,
    tenant: str,
    turn_id: str,
    *,
    epoch: int,
    status: int,
    sequence_ceiling: int,
    expire_time: int | None,
) -> bool:
    """Notes how far a turn is; False when somebody else owns it by now, and then nothing is changed.

    A turn that pauses or ends has no owner any more; nothing waits in the row of one that has ended.
    """
    changed = await tx.execute(
        "UPDATE turns SET status = $4, expire_time = $6,"
        " sequence_ceiling = CASE WHEN sequence_ceiling > $5 THEN sequence_ceiling ELSE $5 END,"
        " owner = CASE WHEN $4 = 2 THEN owner ELSE '' END,"
        " held_input = CASE WHEN $4 IN (4, 5, 6) THEN NULL ELSE held_input END,"
        " pending_start = CASE WHEN $4 IN (4, 5, 6) THEN NULL ELSE pending_start END"
        " WHERE tenant = $1 AND turn_id = $2 AND epoch = $3",
        tenant,
        turn_id,
        epoch,
        status,
        sequence_ceiling,
        expire_time,
    )
    return changed == 1


async def reserve(tx: Transaction, tenant: str, turn_id: str, *, epoch: int, sequence_ceiling: int) -> bool:
    """Reserves numbers up to a ceiling; False when somebody else owns the turn by now."""
    changed = await tx.execute(
        "UPDATE turns SET sequence_ceiling = CASE WHEN sequence_ceiling > $4 THEN sequence_ceiling ELSE $4 END"
        " WHERE tenant = $1 AND turn_id = $2 AND epoch = $3",
        tenant,
        turn_id,
        epoch,
        sequence_ceiling,
    )
    return changed == 1


async def release(tx: Transaction, tenant: str, turn_id: str, *, epoch: int) -> None:
    """Lets go of a turn: whoever wants to may claim it at once."""
    await tx.execute(
        "UPDATE turns SET owner = '' WHERE tenant = $1 AND turn_id = $2 AND epoch = $3", tenant, turn_id, epoch
    )
    await tx.notify(TOPIC, turn_id)


async def release_all(tx: Transaction, instance_id: str) -> None:
    """Lets go of all that a process owns which ends: also of what it had claimed and not yet begun."""
    await tx.execute("UPDATE turns SET owner = '' WHERE owner = $1 AND status = 2", instance_id)
    await tx.notify(TOPIC, "")


async def begin(
    tx: Transaction, tenant: str, row: TurnRow, *, instance_id: str, status: int, sequence_ceiling: int
) -> bool:
    """Starts a queued turn under the next epoch; False when somebody else has taken it since it was read."""
    changed = await tx.execute(
        "UPDATE turns SET owner = $4, epoch = epoch + 1, status = $5, sequence_ceiling = $6, pending_start = NULL,"
        " held_input = CASE WHEN $5 IN (4, 5, 6) THEN NULL ELSE held_input END"
        " WHERE tenant = $1 AND turn_id = $2 AND epoch = $3 AND status = 1",
        tenant,
        row.turn_id,
        row.epoch,
        instance_id if status == 2 else "",
        status,
        sequence_ceiling,
    )
    if changed:
        await tx.notify(TOPIC, row.turn_id)
    return changed == 1


async def abandoned(tx: Transaction, known_format: int) -> list[tuple[str, str]]:
    """Returns (tenant, turn id) of turns that run and have no owner that lives."""
    rows = await tx.fetch(
        "SELECT t.tenant, t.turn_id FROM turns t WHERE t.status = 2 AND t.format <= $1 AND NOT EXISTS"
        " (SELECT 1 FROM leases l WHERE l.instance_id = t.owner AND l.expire_time > $2) LIMIT 500",
        known_format,
        await tx.now(),
    )
    return [(str(row[0]), str(row[1])) for row in rows]


async def owned(tx: Transaction, instance_id: str) -> dict[tuple[str, str], int]:
    """Returns the epochs of the turns that a process runs, by tenant and turn id."""
    rows = await tx.fetch("SELECT tenant, turn_id, epoch FROM turns WHERE owner = $1 AND status = 2", instance_id)
    return {(str(row[0]), str(row[1])): int(row[2] or 0) for row in rows}


async def stalled_queues(tx: Transaction, known_format: int) -> list[tuple[str, str]]:
    """Returns (tenant, session id) where a turn is queued and none is active."""
    rows = await tx.fetch(
        "SELECT DISTINCT q.tenant, q.session_id FROM turns q WHERE q.status = 1 AND q.format <= $1 AND NOT EXISTS"
        " (SELECT 1 FROM turns t WHERE t.tenant = q.tenant AND t.session_id = q.session_id AND t.status IN (2, 3))"
        " LIMIT 500",
        known_format,
    )
    return [(str(row[0]), str(row[1])) for row in rows]
