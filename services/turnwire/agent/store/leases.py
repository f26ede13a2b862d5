"""The leases of the processes that run turns, as rows. They end by the clock of the database, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction

FOR_EVER = 2**62
"""When the lease of a process ends that holds the lock of its database."""
_KEPT_SECONDS = 3600


async def take(tx: Transaction, instance_id: str, address: str, seconds: float | None) -> None:
    """Adds the lease of a process; None: for as long as it lives."""
    expire_time = FOR_EVER if seconds is None else await tx.now() + int(seconds * 1_000_000)
    await tx.execute(
        "INSERT INTO leases (instance_id, address, expire_time) VALUES ($1, $2, $3)"
        " ON CONFLICT (instance_id) DO UPDATE SET address = $2, expire_time = $3",
        instance_id,
        address,
        expire_time,
    )


async def renew(tx: Transaction, instance_id: str, seconds: float) -> bool:
    """Makes a lease last from now; False when it has ended: then its turns may be another's."""
    now = await tx.now()
    changed = await tx.execute(
        "UPDATE leases SET expire_time = $2 WHERE instance_id = $1 AND expire_time > $3",
        instance_id,
        now + int(seconds * 1_000_000),
        now,
    )
    return changed == 1


async def end(tx: Transaction, instance_id: str) -> None:
    """Ends a lease."""
    await tx.execute("DELETE FROM leases WHERE instance_id = $1", instance_id)


async def end_all(tx: Transaction) -> None:
    """Ends every lease: whoever holds the lock of the database is alone."""
    await tx.execute("DELETE FROM leases")


async def address_of(tx: Transaction, instance_id: str) -> str | None:
    """Returns where a process is, or None when it has no lease."""
    row = await tx.fetchrow(
        "SELECT address FROM leases WHERE instance_id = $1 AND expire_time > $2", instance_id, await tx.now()
    )
    return str(row[0]) if row is not None else None


async def living(tx: Transaction) -> set[str]:
    """Returns where the processes are whose leases are good."""
    return {str(row[0]) for row in await tx.fetch("SELECT address FROM leases WHERE expire_time > $1", await tx.now())}


async def sweep(tx: Transaction) -> None:
    """Removes leases that ended long ago."""
    await tx.execute("DELETE FROM leases WHERE expire_time < $1", await tx.now() - _KEPT_SECONDS * 1_000_000)
