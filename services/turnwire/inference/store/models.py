"""Registered models, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from turnwire.inference.v1 import model_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction


async def insert(tx: Transaction, tenant: str, model: model_pb2.Model, request_id: str, digest: str) -> None:
    """Adds a registration."""
    await tx.execute(
        "INSERT INTO models (tenant, provider_id, model_id, request_id, digest, body) VALUES ($1, $2, $3, $4, $5, $6)",
        tenant,
        model.provider_id,
        model.model_id,
        request_id,
        digest,
        model.SerializeToString(),
    )


async def of_tenant(tx: Transaction, tenant: str) -> list[model_pb2.Model]:
    """Returns the registrations of a tenant, by id."""
    rows = await tx.fetch("SELECT body FROM models WHERE tenant = $1 ORDER BY model_id, provider_id", tenant)
    return [model_pb2.Model.FromString(cast("bytes", row[0])) for row in rows]


async def by_request(tx: Transaction, tenant: str, request_id: str) -> tuple[str, model_pb2.Model] | None:
    """Returns (digest, model) of the registration that a request id made, or None."""
    row = await tx.fetchrow(
        "SELECT digest, body FROM models WHERE tenant = $1 AND request_id = $2 AND request_id <> ''",
        tenant,
        request_id,
    )
    return (str(row[0]), model_pb2.Model.FromString(cast("bytes", row[1]))) if row is not None else None


async def exists(tx: Transaction, tenant: str, provider_id: str, model_id: str) -> bool:
    """True when the id is taken at the provider."""
    row = await tx.fetchrow(
        "SELECT 1 FROM models WHERE tenant = $1 AND provider_id = $2 AND model_id = $3", tenant, provider_id, model_id
    )
    return row is not None


async def delete(tx: Transaction, tenant: str, provider_id: str, model_id: str) -> None:
    """Removes a registration."""
    await tx.execute(
        "DELETE FROM models WHERE tenant = $1 AND provider_id = $2 AND model_id = $3", tenant, provider_id, model_id
    )
