"""The last snapshot of each session's workspace, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction


async def get(tx: Transaction, tenant: str, session_id: str) -> tuple[str, bytes] | None:
    """Returns the id and the body of the last snapshot, or None."""
    row = await tx.fetchrow(
        "SELECT snapshot, body FROM workspaces WHERE tenant = $1 AND session_id = $2", tenant, session_id
    )
    return (str(row[0]), cast("bytes", row[1])) if row is not None else None


async def put(tx: Transaction, tenant: str, session_id: str, snapshot: str, body: bytes) -> None:
    """Puts a snapshot in the place of the last one."""
    await tx.execute(
        "INSERT INTO workspaces (tenant, session_id, snapshot, body) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (tenant, session_id) DO UPDATE SET snapshot = $3, body = $4",
        tenant,
        session_id,
        snapshot,
        body,
    )
