"""What is known of artifacts, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from turnwire.tool_executor.v1 import artifact_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction


async def insert(
    tx: Transaction, tenant: str, artifact: artifact_pb2.Artifact, request_id: str = "", digest: str = ""
) -> None:
    """Adds an artifact."""
    await tx.execute(
        "INSERT INTO artifacts"
        " (tenant, artifact_id, session_id, sha256, size_bytes, create_time, request_id, digest, body)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        tenant,
        artifact.artifact_id,
        artifact.session_id,
        artifact.sha256,
        artifact.size_bytes,
        artifact.create_time.ToMicroseconds(),
        request_id,
        digest,
        artifact.SerializeToString(),
    )


async def get(tx: Transaction, tenant: str, artifact_id: str) -> artifact_pb2.Artifact | None:
    """Returns an artifact, or None."""
    row = await tx.fetchrow("SELECT body FROM artifacts WHERE tenant = $1 AND artifact_id = $2", tenant, artifact_id)
    return artifact_pb2.Artifact.FromString(cast("bytes", row[0])) if row is not None else None


async def by_request(tx: Transaction, tenant: str, request_id: str) -> tuple[str, artifact_pb2.Artifact] | None:
    """Returns (digest, artifact) of the upload that a request id made, or None."""
    row = await tx.fetchrow(
        "SELECT digest, body FROM artifacts WHERE tenant = $1 AND request_id = $2 AND request_id <> ''",
        tenant,
        request_id,
    )
    return (str(row[0]), artifact_pb2.Artifact.FromString(cast("bytes", row[1]))) if row is not None else None


async def page(
    tx: Transaction, tenant: str, session_id: str, before: tuple[int, str], limit: int
) -> list[artifact_pb2.Artifact]:
    """Returns the newest artifacts before a (time, id); an empty session means all."""
    rows = await tx.fetch(
        "SELECT body FROM artifacts WHERE tenant = $1 AND ($2 = '' OR session_id = $2)"
        " AND (create_time < $3 OR (create_time = $3 AND artifact_id < $4))"
        " ORDER BY create_time DESC, artifact_id DESC LIMIT $5",
        tenant,
        session_id,
        *before,
        limit,
    )
    return [artifact_pb2.Artifact.FromString(cast("bytes", row[0])) for row in rows]


async def used_bytes(tx: Transaction, tenant: str) -> int:
    """Returns the bytes of all artifacts of a tenant."""
    row = await tx.fetchrow("SELECT coalesce(sum(size_bytes), 0) FROM artifacts WHERE tenant = $1", tenant)
    return int(cast("int", row[0])) if row is not None else 0


async def has_content(tx: Transaction, tenant: str, sha256: str) -> bool:
    """True when an artifact of the tenant has this content."""
    row = await tx.fetchrow("SELECT 1 FROM artifacts WHERE tenant = $1 AND sha256 = $2 LIMIT 1", tenant, sha256)
    return row is not None


async def delete(tx: Transaction, tenant: str, artifact_id: str) -> bool:
    """Removes an artifact; False when it is not there."""
    changed = await tx.execute("DELETE FROM artifacts WHERE tenant = $1 AND artifact_id = $2", tenant, artifact_id)
    return changed == 1
