"""The tables of the tool executor service. The same statements run on SQLite and on PostgreSQL."""

from __future__ import annotations

from turnwire.runtime.storage import Migration, Schema

_TABLES = (
    """
    CREATE TABLE tools (
        tenant TEXT NOT NULL,
        provider_id TEXT NOT NULL,
        tool_id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, provider_id, tool_id)
    )
    """,
    "CREATE UNIQUE INDEX tools_by_request ON tools (tenant, request_id) WHERE request_id <> ''",
    # Times are microseconds since 1970. The primary key is the lock of an execution.
    """
    CREATE TABLE executions (
        tenant TEXT NOT NULL,
        turn_id TEXT NOT NULL,
        call_id TEXT NOT NULL,
        tool_id TEXT NOT NULL,
        request_digest TEXT NOT NULL,
        arguments_sha256 TEXT NOT NULL,
        owner_epoch BIGINT NOT NULL,
        state INTEGER NOT NULL,
        idempotent INTEGER NOT NULL,
        executor TEXT NOT NULL,
        retry_of TEXT NOT NULL,
        workspace_snapshot TEXT NOT NULL,
        prepare_time BIGINT NOT NULL,
        dispatch_time BIGINT,
        end_time BIGINT,
        result BYTEA,
        PRIMARY KEY (tenant, turn_id, call_id)
    )
    """,
    "CREATE INDEX executions_open ON executions (executor) WHERE end_time IS NULL",
    "CREATE INDEX executions_by_end ON executions (end_time) WHERE end_time IS NOT NULL",
    """
    CREATE TABLE artifacts (
        tenant TEXT NOT NULL,
        artifact_id TEXT NOT NULL,
        session_id TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        size_bytes BIGINT NOT NULL,
        create_time BIGINT NOT NULL,
        request_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, artifact_id)
    )
    """,
    "CREATE UNIQUE INDEX artifacts_by_request ON artifacts (tenant, request_id) WHERE request_id <> ''",
    "CREATE INDEX artifacts_by_content ON artifacts (tenant, sha256)",
    "CREATE INDEX artifacts_by_time ON artifacts (tenant, create_time, artifact_id)",
)

# Which processes execute, what people have decided about lost outcomes, and what sandboxes are restored from.
_REPLICAS = (
    "CREATE TABLE executors (executor TEXT PRIMARY KEY, expire_time BIGINT NOT NULL)",
    "ALTER TABLE executions ADD COLUMN resolution INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE executions ADD COLUMN stop_time BIGINT",
    """
    CREATE TABLE workspaces (
        tenant TEXT NOT NULL,
        session_id TEXT NOT NULL,
        snapshot TEXT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, session_id)
    )
    """,
)

SCHEMA = Schema(
    name="tool_executor",
    migrations=(Migration(version=1, statements=_TABLES), Migration(version=2, statements=_REPLICAS)),
)
