"""Registered shields, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from turnwire.safety.v1 import shield_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction


async def insert(tx: Transaction, tenant: str, shield: shield_pb2.Shield, request_id: str, digest: str) -> None:
    """Adds a registration."""
    await tx.execute(
        "INSERT INTO shields (tenant, provider_id, shield_id, request_id, digest, body) "
        "VALUES ($1, $2, $3, $4, $5, $6)",
        tenant,
        shield.provider_id,
        shield.shield_id,
        request_id,
        digest,
        shield.SerializeToString(),
    )


async def of_tenant(tx: Transaction, tenant: str) -> list[shield_pb2.Shield]:
    """Returns the registrations of a tenant, by id."""
    rows = await tx.fetch("SELECT body FROM shields WHERE tenant = $1 ORDER BY shield_id, provider_id", tenant)
    return [shield_pb2.Shield.FromString(cast("bytes", row[0])) for row in rows]


async def by_request(tx: Transaction, tenant: str, request_id: str) -> tuple[str, shield_pb2.Shield] | None:
    """Returns (digest, shield) of the registration that a request id made, or None."""
    row = await tx.fetchrow(
        "SELECT digest, body FROM shields WHERE tenant = $1 AND request_id = $2 AND request_id <> ''",
        tenant,
        request_id,
    )
    return (str(row[0]), shield_pb2.Shield.FromString(cast("bytes", row[1]))) if row is not None else None


async def exists(tx: Transaction, tenant: str, provider_id: str, shield_id: str) -> bool:
    """True when the id is taken at the provider."""
    row = await tx.fetchrow(
        "SELECT 1 FROM shields WHERE tenant = $1 AND provider_id = $2 AND shield_id = $3",
        tenant,
        provider_id,
        shield_id,
    )
    return row is not None


async def delete(tx: Transaction, tenant: str, provider_id: str, shield_id: str) -> None:
    """Removes a registration."""
    await tx.execute(
        "DELETE FROM shields WHERE tenant = $1 AND provider_id = $2 AND shield_id = $3",
        tenant,
        provider_id,
        shield_id,
    )
