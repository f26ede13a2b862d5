"""The leases of the processes that execute, as rows. They end by the clock of the database, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction

_FOR_EVER = 2**62
"""When the lease of a process ends that holds the lock of its database."""
_KEPT_MICROSECONDS = 3600 * 1_000_000


async def take(tx: Transaction, executor: str, seconds: float | None) -> None:
    """Makes the lease of a process last from now; None: for as long as it lives."""
    expire_time = _FOR_EVER if seconds is None else await tx.now() + int(seconds * 1_000_000)
    await tx.execute(
        "INSERT INTO executors (executor, expire_time) VALUES ($1, $2)"
        " ON CONFLICT (executor) DO UPDATE SET expire_time = $2",
        executor,
        expire_time,
    )


async def alive(tx: Transaction, executor: str) -> bool:
    """True while a process has a lease."""
    row = await tx.fetchrow(
        "SELECT 1 FROM executors WHERE executor = $1 AND expire_time > $2", executor, await tx.now()
    )
    return row is not None


async def end(tx: Transaction, executor: str) -> None:
    """Ends a lease."""
    await tx.execute("DELETE FROM executors WHERE executor = $1", executor)


async def end_all(tx: Transaction) -> None:
    """Ends every lease: whoever holds the lock of the database is alone."""
    await tx.execute("DELETE FROM executors")


async def sweep(tx: Transaction) -> int:
    """Removes leases that ended long ago; returns how many."""
    return await tx.execute("DELETE FROM executors WHERE expire_time < $1", await tx.now() - _KEPT_MICROSECONDS)
