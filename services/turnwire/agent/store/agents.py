"""Agents and their versions, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from turnwire.agent.store.clock import microseconds
from turnwire.agent.v1 import agent_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Transaction


async def insert(tx: Transaction, tenant: str, agent: agent_pb2.Agent) -> None:
    """Adds an agent in its first version."""
    await tx.execute(
        "INSERT INTO agents (tenant, agent_id, version, etag, create_time) VALUES ($1, $2, $3, $4, $5)",
        tenant,
        agent.agent_id,
        agent.version,
        agent.etag,
        microseconds(agent.create_time),
    )
    await _insert_version(tx, tenant, agent)


async def replace(tx: Transaction, tenant: str, agent: agent_pb2.Agent, *, new_version: bool) -> None:
    """Stores a changed agent, as a further version or in place of the newest one."""
    await tx.execute(
        "UPDATE agents SET version = $3, etag = $4 WHERE tenant = $1 AND agent_id = $2",
        tenant,
        agent.agent_id,
        agent.version,
        agent.etag,
    )
    if new_version:
        await _insert_version(tx, tenant, agent)
    else:
        await tx.execute(
            "UPDATE agent_versions SET body = $4 WHERE tenant = $1 AND agent_id = $2 AND version = $3",
            tenant,
            agent.agent_id,
            agent.version,
            agent.SerializeToString(),
        )


async def get(tx: Transaction, tenant: str, agent_id: str, version: int = 0) -> agent_pb2.Agent | None:
    """Returns an agent in a version (0: the newest), or None."""
    row = await tx.fetchrow(
        "SELECT v.body FROM agents a JOIN agent_versions v ON v.tenant = a.tenant AND v.agent_id = a.agent_id"
        " AND v.version = CASE WHEN $3 = 0 THEN a.version ELSE $3 END WHERE a.tenant = $1 AND a.agent_id = $2",
        tenant,
        agent_id,
        version,
    )
    return agent_pb2.Agent.FromString(cast("bytes", row[0])) if row is not None else None


async def page(tx: Transaction, tenant: str, after: tuple[int, str], limit: int) -> list[agent_pb2.Agent]:
    """Returns the agents after a position (creation time, id), in order of their making."""
    rows = await tx.fetch(
        "SELECT v.body FROM agents a JOIN agent_versions v ON v.tenant = a.tenant AND v.agent_id = a.agent_id"
        " AND v.version = a.version WHERE a.tenant = $1 AND (a.create_time > $2 OR (a.create_time = $2 AND"
        " a.agent_id > $3)) ORDER BY a.create_time, a.agent_id LIMIT $4",
        tenant,
        after[0],
        after[1],
        limit,
    )
    return [agent_pb2.Agent.FromString(cast("bytes", row[0])) for row in rows]


async def versions(tx: Transaction, tenant: str, agent_id: str, before: int, limit: int) -> list[agent_pb2.Agent]:
    """Returns the versions of an agent below a number, newest first."""
    rows = await tx.fetch(
        "SELECT body FROM agent_versions WHERE tenant = $1 AND agent_id = $2 AND version < $3"
        " ORDER BY version DESC LIMIT $4",
        tenant,
        agent_id,
        before,
        limit,
    )
    return [agent_pb2.Agent.FromString(cast("bytes", row[0])) for row in rows]


async def delete(tx: Transaction, tenant: str, agent_id: str) -> None:
    """Removes an agent and its versions."""
    await tx.execute("DELETE FROM agent_versions WHERE tenant = $1 AND agent_id = $2", tenant, agent_id)
    await tx.execute("DELETE FROM agents WHERE tenant = $1 AND agent_id = $2", tenant, agent_id)


async def names(tx: Transaction, tenant: str, limit: int = 20) -> list[str]:
    """Returns ids of agents, for messages that tell what there is."""
    rows = await tx.fetch("SELECT agent_id FROM agents WHERE tenant = $1 ORDER BY create_time LIMIT $2", tenant, limit)
    return [str(row[0]) for row in rows]


async def _insert_version(tx: Transaction, tenant: str, agent: agent_pb2.Agent) -> None:
    await tx.execute(
        "INSERT INTO agent_versions (tenant, agent_id, version, body) VALUES ($1, $2, $3, $4)",
        tenant,
        agent.agent_id,
        agent.version,
        agent.SerializeToString(),
    )
