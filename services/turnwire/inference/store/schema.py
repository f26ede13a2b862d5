"""The tables of the inference service. The same statements run on SQLite and on PostgreSQL."""

from __future__ import annotations

from turnwire.runtime.storage import Migration, Schema

_TABLES = (
    """
    CREATE TABLE models (
        tenant TEXT NOT NULL,
        provider_id TEXT NOT NULL,
        model_id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, provider_id, model_id)
    )
    """,
    "CREATE UNIQUE INDEX models_by_request ON models (tenant, request_id) WHERE request_id <> ''",
)

SCHEMA = Schema(name="inference", migrations=(Migration(version=1, statements=_TABLES),))
