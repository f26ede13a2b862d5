"""Request ids that were used, and turn ids that cannot be used, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from turnwire.agent.store.clock import now_microseconds

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction

DELETED = "deleted"
CANCELLED = "cancelled"
TOMBSTONE_LIFE = {DELETED: 30 * 24 * 3600, CANCELLED: 600}
"""How long a turn id is kept from use, in seconds."""


async def find(tx: Transaction, tenant: str, request_id: str) -> tuple[str, str] | None:
    """Returns (digest, resource name) of a request id that was used, or None."""
    row = await tx.fetchrow(
        "SELECT digest, resource_name FROM requests WHERE tenant = $1 AND request_id = $2", tenant, request_id
    )
    return (str(row[0]), str(row[1])) if row is not None else None


async def remember(tx: Transaction, tenant: str, request_id: str, digest: str, resource_name: str) -> None:
    """Keeps what a request id made."""
    await tx.execute(
        "INSERT INTO requests (tenant, request_id, digest, resource_name, create_time) VALUES ($1, $2, $3, $4, $5)",
        tenant,
        request_id,
        digest,
        resource_name,
        now_microseconds(),
    )


async def bury(tx: Transaction, tenant: str, turn_id: str, kind: str) -> None:
    """Keeps a turn id from use for the time of its kind."""
    await tx.execute(
        "INSERT INTO tombstones (tenant, turn_id, kind, expire_time) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (tenant, turn_id) DO UPDATE SET kind = $3, expire_time = $4",
        tenant,
        turn_id,
        kind,
        now_microseconds() + TOMBSTONE_LIFE[kind] * 1_000_000,
    )


async def tombstone(tx: Transaction, tenant: str, turn_id: str) -> str | None:
    """Returns why a turn id cannot be used, or None when it can."""
    row = await tx.fetchrow(
        "SELECT kind FROM tombstones WHERE tenant = $1 AND turn_id = $2 AND expire_time > $3",
        tenant,
        turn_id,
        now_microseconds(),
    )
    return cast("str", row[0]) if row is not None else None


async def sweep(tx: Transaction) -> None:
    """Removes tombstones that have expired and request ids older than a day."""
    now = now_microseconds()
    await tx.execute("DELETE FROM tombstones WHERE expire_time < $1", now)
    await tx.execute("DELETE FROM requests WHERE create_time < $1", now - 24 * 3600 * 1_000_000)
