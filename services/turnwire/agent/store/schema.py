"""The tables of the agent service. The same statements run on SQLite and on PostgreSQL.

Times are microseconds since 1970. Every row but a lease has a tenant, and every key begins with it.
"""

from __future__ import annotations

from turnwire.runtime.storage import Migration, Schema

_TABLES = (
    """
    CREATE TABLE agents (
        tenant TEXT NOT NULL,
        agent_id TEXT NOT NULL,
        version BIGINT NOT NULL,
        etag TEXT NOT NULL,
        create_time BIGINT NOT NULL,
        PRIMARY KEY (tenant, agent_id)
    )
    """,
    """
    CREATE TABLE agent_versions (
        tenant TEXT NOT NULL,
        agent_id TEXT NOT NULL,
        version BIGINT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, agent_id, version)
    )
    """,
    """
    CREATE TABLE sessions (
        tenant TEXT NOT NULL,
        session_id TEXT NOT NULL,
        agent_id TEXT NOT NULL,
        forked_from TEXT NOT NULL,
        last_ordinal BIGINT NOT NULL,
        persistent BIGINT NOT NULL,
        create_time BIGINT NOT NULL,
        update_time BIGINT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, session_id)
    )
    """,
    "CREATE INDEX sessions_by_agent ON sessions (tenant, agent_id, create_time)",
    "CREATE INDEX sessions_by_time ON sessions (tenant, create_time)",
    "CREATE INDEX sessions_by_origin ON sessions (tenant, forked_from) WHERE forked_from <> ''",
    "CREATE INDEX sessions_to_erase ON sessions (update_time) WHERE persistent = 0",
    # A status is a number of turnwire.agent.v1.TurnStatus. Ownership: a turn that runs has an owner, an instance
    # of the agent service; every append names the epoch it was made under.
    """
    CREATE TABLE turns (
        tenant TEXT NOT NULL,
        turn_id TEXT NOT NULL,
        session_id TEXT NOT NULL,
        ordinal BIGINT NOT NULL,
        status BIGINT NOT NULL,
        request_digest TEXT NOT NULL,
        config_digest TEXT NOT NULL,
        owner TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        sequence_ceiling BIGINT NOT NULL,
        disconnect_policy BIGINT NOT NULL,
        expire_time BIGINT,
        metadata BYTEA,
        create_time BIGINT NOT NULL,
        held_input BYTEA,
        PRIMARY KEY (tenant, turn_id)
    )
    """,
    "CREATE UNIQUE INDEX turns_by_session ON turns (tenant, session_id, ordinal)",
    # One turn of a session runs (2) or awaits input (3) at a time.
    "CREATE UNIQUE INDEX turns_active ON turns (tenant, session_id) WHERE status IN (2, 3)",
    "CREATE INDEX turns_unfinished ON turns (status) WHERE status IN (1, 2, 3)",
    """
    CREATE TABLE events (
        tenant TEXT NOT NULL,
        turn_id TEXT NOT NULL,
        sequence BIGINT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, turn_id, sequence)
    )
    """,
    """
    CREATE TABLE configs (
        tenant TEXT NOT NULL,
        digest TEXT NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (tenant, digest)
    )
    """,
    # The creates that named a request id, and what they made.
    """
    CREATE TABLE requests (
        tenant TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        resource_name TEXT NOT NULL,
        create_time BIGINT NOT NULL,
        PRIMARY KEY (tenant, request_id)
    )
    """,
    # Turn ids that cannot be used: deleted ones for 30 days, those cancelled before they came for 10 minutes.
    """
    CREATE TABLE tombstones (
        tenant TEXT NOT NULL,
        turn_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        expire_time BIGINT NOT NULL,
        PRIMARY KEY (tenant, turn_id)
    )
    """,
)

_REPLICAS = (
    # The format of a turn's stored events: a process takes over only what it knows.
    "ALTER TABLE turns ADD COLUMN format BIGINT NOT NULL DEFAULT 1",
    # The `turn_started` of a queued turn, until its turn comes.
    "ALTER TABLE turns ADD COLUMN pending_start BYTEA",
    "CREATE INDEX turns_by_owner ON turns (owner) WHERE status = 2",
    "CREATE INDEX turns_queued ON turns (tenant, session_id, ordinal) WHERE status = 1",
    # The processes that run turns; they belong to no tenant. A lease ends by the clock of the database.
    """
    CREATE TABLE leases (
        instance_id TEXT NOT NULL PRIMARY KEY,
        address TEXT NOT NULL,
        expire_time BIGINT NOT NULL
    )
    """,
    # What others want of a turn: its owner takes it into the log.
    """
    CREATE TABLE turn_inbox (
        tenant TEXT NOT NULL,
        turn_id TEXT NOT NULL,
        entry_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        body BYTEA NOT NULL,
        create_time BIGINT NOT NULL,
        PRIMARY KEY (tenant, turn_id, entry_id)
    )
    """,
)

SCHEMA = Schema(
    name="agent",
    migrations=(Migration(version=1, statements=_TABLES), Migration(version=2, statements=_REPLICAS)),
)
