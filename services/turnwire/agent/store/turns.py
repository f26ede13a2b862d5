"""Turns, as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from turnwire.agent.v1 import turn_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Row, Transaction

_COLUMNS = (
    "turn_id, session_id, ordinal, status, request_digest, config_digest, owner, epoch, sequence_ceiling,"
    " disconnect_policy, expire_time, metadata, create_time, held_input, format, pending_start"
)


@dataclass(slots=True, kw_only=True)
class TurnRow:
    """What is kept of a turn beside its events."""

    turn_id: str
    session_id: str
    ordinal: int
    status: turn_pb2.TurnStatus.ValueType
    request_digest: str
    config_digest: str
    owner: str
    epoch: int
    sequence_ceiling: int
    disconnect_policy: int
    expire_time: int | None
    metadata: bytes | None
    """The labels, as a Turn with nothing else; None: those of `turn_started`."""
    held_input: bytes | None = None
    """The input, or results given for calls, while they wait for their shields (`turn/held.py`): in no event before."""
    format: int = 1
    """The format of its stored events."""
    pending_start: bytes | None = None
    """The `turn_started` of a queued turn, until its turn comes."""
    create_time: int


async def insert(tx: Transaction, tenant: str, turn: TurnRow) -> bool:
    """Adds a turn; False when its id is taken by now, or when it would be a second active one in its session."""
    added = await tx.execute(
        f"INSERT INTO turns (tenant, {_COLUMNS}) VALUES"  # noqa: S608 - the columns are a constant
        " ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) ON CONFLICT DO NOTHING",
        tenant,
        turn.turn_id,
        turn.session_id,
        turn.ordinal,
        turn.status,
        turn.request_digest,
        turn.config_digest,
        turn.owner,
        turn.epoch,
        turn.sequence_ceiling,
        turn.disconnect_policy,
        turn.expire_time,
        turn.metadata,
        turn.create_time,
        turn.held_input,
        turn.format,
        turn.pending_start,
    )
    return added == 1


async def get(tx: Transaction, tenant: str, turn_id: str) -> TurnRow | None:
    """Returns a turn's row, or None."""
    row = await tx.fetchrow(
        f"SELECT {_COLUMNS} FROM turns WHERE tenant = $1 AND turn_id = $2",  # noqa: S608 - as above
        tenant,
        turn_id,
    )
    return _turn(row) if row is not None else None


async def of_session(tx: Transaction, tenant: str, session_id: str, up_to: int) -> list[TurnRow]:
    """Returns the turns of a session up to an ordinal, in order."""
    rows = await tx.fetch(
        f"SELECT {_COLUMNS} FROM turns WHERE tenant = $1 AND session_id = $2 AND ordinal <= $3"  # noqa: S608 - as above
        " ORDER BY ordinal",
        tenant,
        session_id,
        up_to,
    )
    return [_turn(row) for row in rows]


async def page(
    tx: Transaction, tenant: str, session_id: str, statuses: list[int], after: tuple[int, int, str], limit: int
) -> list[TurnRow]:
    """Returns turns after a position (creation time, ordinal, id), in order of acceptance."""
    marks = ", ".join(f"${index}" for index in range(7, 7 + len(statuses)))
    rows = await tx.fetch(
        f"SELECT {_COLUMNS} FROM turns WHERE tenant = $1 AND ($2 = '' OR session_id = $2)"  # noqa: S608 - as above
        " AND (create_time > $3 OR (create_time = $3 AND (ordinal > $4 OR (ordinal = $4 AND turn_id > $5))))"
        + (f" AND status IN ({marks})" if statuses else "")
        + " ORDER BY create_time, ordinal, turn_id LIMIT $6",
        tenant,
        session_id,
        *after,
        limit,
        *statuses,
    )
    return [_turn(row) for row in rows]


async def unfinished(tx: Transaction, tenant: str, session_id: str) -> list[TurnRow]:
    """Returns the turns of a session that run, await input or are queued, in order."""
    rows = await tx.fetch(
        f"SELECT {_COLUMNS} FROM turns WHERE tenant = $1 AND session_id = $2"  # noqa: S608 - as above
        " AND status IN (1, 2, 3) ORDER BY ordinal",
        tenant,
        session_id,
    )
    return [_turn(row) for row in rows]


async def expired(tx: Transaction) -> list[tuple[str, str]]:
    """Returns (tenant, turn id) of the pauses that have run out."""
    query = "SELECT tenant, turn_id FROM turns WHERE status = 3 AND expire_time < $1 ORDER BY expire_time LIMIT 500"
    rows = await tx.fetch(query, await tx.now())
    return [(str(row[0]), str(row[1])) for row in rows]


async def set_metadata(tx: Transaction, tenant: str, turn_id: str, metadata: bytes) -> None:
    """Stores new labels."""
    await tx.execute("UPDATE turns SET metadata = $3 WHERE tenant = $1 AND turn_id = $2", tenant, turn_id, metadata)


async def hold(tx: Transaction, tenant: str, turn_id: str, body: bytes) -> None:
    """Keeps what waits for its shields."""
    await tx.execute("UPDATE turns SET held_input = $3 WHERE tenant = $1 AND turn_id = $2", tenant, turn_id, body)


async def forget_held(tx: Transaction, tenant: str, turn_id: str) -> None:
    """Removes what waited for its shields."""
    await tx.execute(
        "UPDATE turns SET held_input = NULL WHERE tenant = $1 AND turn_id = $2 AND held_input IS NOT NULL",
        tenant,
        turn_id,
    )


async def delete(tx: Transaction, tenant: str, turn_id: str) -> None:
    """Removes a turn with its log."""
    await tx.execute("DELETE FROM turn_inbox WHERE tenant = $1 AND turn_id = $2", tenant, turn_id)
    await tx.execute("DELETE FROM events WHERE tenant = $1 AND turn_id = $2", tenant, turn_id)
    await tx.execute("DELETE FROM turns WHERE tenant = $1 AND turn_id = $2", tenant, turn_id)


def _turn(row: Row) -> TurnRow:
    return TurnRow(
        turn_id=cast("str", row[0]),
        session_id=cast("str", row[1]),
        ordinal=cast("int", row[2]),
        status=cast("turn_pb2.TurnStatus.ValueType", row[3]),
        request_digest=cast("str", row[4]),
        config_digest=cast("str", row[5]),
        owner=cast("str", row[6]),
        epoch=cast("int", row[7]),
        sequence_ceiling=cast("int", row[8]),
        disconnect_policy=cast("int", row[9]),
        expire_time=cast("int | None", row[10]),
        metadata=cast("bytes | None", row[11]),
        create_time=cast("int", row[12]),
        held_input=cast("bytes | None", row[13]),
        format=cast("int", row[14]),
        pending_start=cast("bytes | None", row[15]),
    )
