"""Sessions, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.store.clock import microseconds, timestamp
from turnwire.agent.v1 import session_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Row, Transaction

_COLUMNS = (
    "SELECT s.body, s.last_ordinal, s.update_time, t.turn_id FROM sessions s LEFT JOIN turns t"
    " ON t.tenant = s.tenant AND t.session_id = s.session_id AND t.status IN (2, 3)"
)


async def insert(tx: Transaction, tenant: str, session: session_pb2.Session) -> None:
    """Adds a session."""
    await tx.execute(
        "INSERT INTO sessions (tenant, session_id, agent_id, forked_from, last_ordinal, persistent, create_time,"
        " update_time, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        tenant,
        session.session_id,
        session.agent_id,
        session.forked_from.session_id,
        session.last_ordinal,
        int(session.persistent),
        microseconds(session.create_time),
        microseconds(session.update_time),
        session.SerializeToString(),
    )


async def replace(tx: Transaction, tenant: str, session: session_pb2.Session) -> None:
    """Stores a changed session."""
    await tx.execute(
        "UPDATE sessions SET body = $3, update_time = $4 WHERE tenant = $1 AND session_id = $2",
        tenant,
        session.session_id,
        session.SerializeToString(),
        microseconds(session.update_time),
    )


async def set_bank(tx: Transaction, tenant: str, session: session_pb2.Session, bank_id: str) -> None:
    """Notes the memory bank of a session."""
    session.bank_id = bank_id
    await replace(tx, tenant, session)


async def accept_turn(tx: Transaction, tenant: str, session_id: str, ordinal: int, when: int) -> None:
    """Counts a turn that was accepted."""
    await tx.execute(
        "UPDATE sessions SET last_ordinal = $3, update_time = $4 WHERE tenant = $1 AND session_id = $2",
        tenant,
        session_id,
        ordinal,
        when,
    )


async def touch(tx: Transaction, tenant: str, session_id: str, when: int) -> None:
    """Notes that something happened in a session: erasure counts from here."""
    await tx.execute(
        "UPDATE sessions SET update_time = $3 WHERE tenant = $1 AND session_id = $2", tenant, session_id, when
    )


async def get(tx: Transaction, tenant: str, session_id: str) -> session_pb2.Session | None:
    """Returns a session, or None."""
    row = await tx.fetchrow(_COLUMNS + " WHERE s.tenant = $1 AND s.session_id = $2", tenant, session_id)
    return _session(row) if row is not None else None


async def page(
    tx: Transaction, tenant: str, agent_id: str, before: tuple[int, str], limit: int
) -> list[session_pb2.Session]:
    """Returns the sessions before a position (creation time, id), newest first; of one agent if it is named."""
    rows = await tx.fetch(
        _COLUMNS + " WHERE s.tenant = $1 AND ($2 = '' OR s.agent_id = $2) AND (s.create_time < $3 OR"
        " (s.create_time = $3 AND s.session_id < $4)) ORDER BY s.create_time DESC, s.session_id DESC LIMIT $5",
        tenant,
        agent_id,
        before[0],
        before[1],
        limit,
    )
    return [_session(row) for row in rows]


async def of_agent(tx: Transaction, tenant: str, agent_id: str) -> list[str]:
    """Returns the ids of all sessions of an agent."""
    rows = await tx.fetch(
        "SELECT session_id FROM sessions WHERE tenant = $1 AND agent_id = $2 ORDER BY create_time", tenant, agent_id
    )
    return [str(row[0]) for row in rows]


async def forks_of(tx: Transaction, tenant: str, session_id: str) -> list[session_pb2.Session]:
    """Returns the sessions whose history refers to this one."""
    rows = await tx.fetch(
        _COLUMNS + " WHERE s.tenant = $1 AND s.forked_from = $2 AND s.forked_from <> ''", tenant, session_id
    )
    return [_session(row) for row in rows]


async def to_erase(tx: Transaction, before: int) -> list[tuple[str, str]]:
    """Returns (tenant, session id) of the sessions that are not kept and idle since `before`."""
    rows = await tx.fetch(
        "SELECT s.tenant, s.session_id FROM sessions s WHERE s.persistent = 0 AND s.update_time < $1 AND NOT EXISTS"
        " (SELECT 1 FROM turns t WHERE t.tenant = s.tenant AND t.session_id = s.session_id AND t.status IN (1, 2, 3))"
        " LIMIT 500",
        before,
    )
    return [(str(row[0]), str(row[1])) for row in rows]


async def delete(tx: Transaction, tenant: str, session_id: str) -> None:
    """Removes a session. Its turns are removed first."""
    await tx.execute("DELETE FROM sessions WHERE tenant = $1 AND session_id = $2", tenant, session_id)


def _session(row: Row) -> session_pb2.Session:
    body, last_ordinal, update_time, active_turn_id = row
    assert isinstance(body, bytes)
    assert isinstance(last_ordinal, int)
    assert isinstance(update_time, int)
    session = session_pb2.Session.FromString(body)
    session.last_ordinal = last_ordinal
    session.update_time.CopyFrom(timestamp(update_time))
    session.active_turn_id = str(active_turn_id) if active_turn_id is not None else ""
    return session
