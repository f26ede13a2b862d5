"""The stored events of turns, and the configurations they ran under."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from turnwire.agent.v1 import agent_pb2, event_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnwire.runtime.storage import Transaction


async def append(tx: Transaction, tenant: str, turn_id: str, events: Iterable[event_pb2.StepEvent]) -> None:
    """Adds events to a turn's log. A number that is taken is an error of the database."""
    await tx.execute_many(
        "INSERT INTO events (tenant, turn_id, sequence, body) VALUES ($1, $2, $3, $4)",
        [(tenant, turn_id, event.sequence, event.SerializeToString()) for event in events],
    )


async def of_turn(tx: Transaction, tenant: str, turn_id: str, *, after: int = 0) -> list[event_pb2.StepEvent]:
    """Returns the events of a turn that end after a number, in order."""
    rows = await tx.fetch(
        "SELECT body FROM events WHERE tenant = $1 AND turn_id = $2 AND sequence > $3 ORDER BY sequence",
        tenant,
        turn_id,
        after,
    )
    return [event_pb2.StepEvent.FromString(cast("bytes", row[0])) for row in rows]


async def pin_config(tx: Transaction, tenant: str, digest: str, body: bytes) -> None:
    """Keeps a configuration under its hash; once for all turns that run under it."""
    await tx.execute(
        "INSERT INTO configs (tenant, digest, body) VALUES ($1, $2, $3) ON CONFLICT (tenant, digest) DO NOTHING",
        tenant,
        digest,
        body,
    )


async def config(tx: Transaction, tenant: str, digest: str) -> agent_pb2.AgentConfig:
    """Returns the configuration of a hash."""
    row = await tx.fetchrow("SELECT body FROM configs WHERE tenant = $1 AND digest = $2", tenant, digest)
    assert row is not None, f"configuration {digest} is pinned by a turn but not stored"
    return agent_pb2.AgentConfig.FromString(cast("bytes", row[0]))
