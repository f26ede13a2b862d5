"""The tables of the safety service. The same statements run on SQLite and on PostgreSQL."""

from __future__ import annotations

from turnwire.runtime.storage import Migration, Schema

_TABLES = (
    """
    CREATE TABLE shields (
        tenant TEXT NOT NULL,
        provider_id TEXT NOT NULL,
        shield_id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, provider_id, shield_id)
    )
    """,
    "CREATE UNIQUE INDEX shields_by_request ON shields (tenant, request_id) WHERE request_id <> ''",
)

SCHEMA = Schema(name="safety", migrations=(Migration(version=1, statements=_TABLES),))
