"""Registered tools, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from turnwire.tool_executor.v1 import tool_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction


async def insert(tx: Transaction, tenant: str, tool: tool_pb2.Tool, request_id: str, digest: str) -> None:
    """Adds a registration."""
    await tx.execute(
        "INSERT INTO tools (tenant, provider_id, tool_id, request_id, digest, body) VALUES ($1, $2, $3, $4, $5, $6)",
        tenant,
        tool.provider_id,
        tool.tool_id,
        request_id,
        digest,
        tool.SerializeToString(),
    )


async def of_tenant(tx: Transaction, tenant: str) -> list[tool_pb2.Tool]:
    """Returns the registrations of a tenant, by id."""
    rows = await tx.fetch("SELECT body FROM tools WHERE tenant = $1 ORDER BY tool_id, provider_id", tenant)
    return [tool_pb2.Tool.FromString(cast("bytes", row[0])) for row in rows]


async def by_request(tx: Transaction, tenant: str, request_id: str) -> tuple[str, tool_pb2.Tool] | None:
    """Returns (digest, tool) of the registration that a request id made, or None."""
    row = await tx.fetchrow(
        "SELECT digest, body FROM tools WHERE tenant = $1 AND request_id = $2 AND request_id <> ''",
        tenant,
        request_id,
    )
    return (str(row[0]), tool_pb2.Tool.FromString(cast("bytes", row[1]))) if row is not None else None


async def exists(tx: Transaction, tenant: str, provider_id: str, tool_id: str) -> bool:
    """True when the id is taken at the provider."""
    row = await tx.fetchrow(
        "SELECT 1 FROM tools WHERE tenant = $1 AND provider_id = $2 AND tool_id = $3", tenant, provider_id, tool_id
    )
    return row is not None


async def delete(tx: Transaction, tenant: str, provider_id: str, tool_id: str) -> None:
    """Removes a registration."""
    await tx.execute(
        "DELETE FROM tools WHERE tenant = $1 AND provider_id = $2 AND tool_id = $3", tenant, provider_id, tool_id
    )
