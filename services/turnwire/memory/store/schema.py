"""The tables of the memory service. The same statements run on SQLite and on PostgreSQL."""

from __future__ import annotations

from turnwire.runtime.storage import Migration, Schema

_TABLES = (
    # `uid` names a bank to its provider and is never used again, as `bank_id` may be. `generation` counts the commits
    # that change what a question finds.
    """
    CREATE TABLE banks (
        uid TEXT NOT NULL PRIMARY KEY,
        tenant TEXT NOT NULL,
        bank_id TEXT NOT NULL,
        dropped BIGINT NOT NULL,
        dimension BIGINT NOT NULL,
        generation BIGINT NOT NULL,
        request_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        body BYTEA NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX banks_by_id ON banks (tenant, bank_id) WHERE dropped = 0",
    "CREATE UNIQUE INDEX banks_by_request ON banks (tenant, request_id) WHERE dropped = 0 AND request_id <> ''",
    # `revision` is the version of the document that is to be seen, `digest` all that it was made from.
    """
    CREATE TABLE documents (
        uid TEXT NOT NULL,
        document_id TEXT NOT NULL,
        revision TEXT NOT NULL,
        digest TEXT NOT NULL,
        chunks BIGINT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (uid, document_id)
    )
    """,
    "CREATE UNIQUE INDEX documents_by_revision ON documents (revision)",
    """
    CREATE TABLE chunks (
        revision TEXT NOT NULL,
        ordinal BIGINT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (revision, ordinal)
    )
    """,
    # Versions that a provider may have and that are not to be seen: not yet, or no longer.
    """
    CREATE TABLE hidden (
        revision TEXT NOT NULL PRIMARY KEY,
        uid TEXT NOT NULL
    )
    """,
    "CREATE INDEX hidden_by_bank ON hidden (uid)",
    # What an insertion with a request id came to.
    """
    CREATE TABLE requests (
        tenant TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        result BYTEA NOT NULL,
        create_time BIGINT NOT NULL,
        PRIMARY KEY (tenant, request_id)
    )
    """,
)

SCHEMA = Schema(name="memory", migrations=(Migration(version=1, statements=_TABLES),))
