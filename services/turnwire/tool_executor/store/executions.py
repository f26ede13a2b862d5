"""The journal of executions, as rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from turnwire.tool_executor.v1 import execution_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Row, Transaction

State = execution_pb2.ExecutionState
Key = tuple[str, str, str]
"""Tenant, turn and call."""
ENDED = frozenset(
    {
        execution_pb2.EXECUTION_STATE_SUCCEEDED,
        execution_pb2.EXECUTION_STATE_FAILED,
        execution_pb2.EXECUTION_STATE_CANCELLED,
        execution_pb2.EXECUTION_STATE_OUTCOME_UNKNOWN,
    }
)
_COLUMNS = (
    "tenant, turn_id, call_id, tool_id, request_digest, arguments_sha256, owner_epoch, state, idempotent, executor,"
    " retry_of, workspace_snapshot, prepare_time, dispatch_time, end_time, result, resolution"
)
_OF_KEY = "tenant = $1 AND turn_id = $2 AND call_id = $3"


@dataclass(slots=True)
class ExecutionRow:
    """One call of a tool."""

    tenant: str
    turn_id: str
    call_id: str
    tool_id: str
    request_digest: str
    arguments_sha256: str
    owner_epoch: int
    state: State.ValueType
    idempotent: bool
    executor: str
    retry_of: str = ""
    workspace_snapshot: str = ""
    prepare_time: int = 0
    dispatch_time: int | None = None
    end_time: int | None = None
    result: bytes | None = None
    resolution: int = 0
    """What somebody has decided, its outcome being unknown; 0: nothing."""

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.tenant, self.turn_id, self.call_id

    @property
    def ended(self) -> bool:
        """True when it has an outcome."""
        return self.state in ENDED


async def insert(tx: Transaction, row: ExecutionRow) -> None:
    """Adds a row."""
    await tx.execute(
        f"INSERT INTO executions ({_COLUMNS})"  # noqa: S608 - column names only
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        row.tenant,
        row.turn_id,
        row.call_id,
        row.tool_id,
        row.request_digest,
        row.arguments_sha256,
        row.owner_epoch,
        row.state,
        int(row.idempotent),
        row.executor,
        row.retry_of,
        row.workspace_snapshot,
        row.prepare_time,
        row.dispatch_time,
        row.end_time,
        row.result,
        row.resolution,
    )


async def get(tx: Transaction, key: Key) -> ExecutionRow | None:
    """Returns a row, or None."""
    row = await tx.fetchrow(f"SELECT {_COLUMNS} FROM executions WHERE {_OF_KEY}", *key)  # noqa: S608 - as above
    return _row(row) if row is not None else None


async def highest_epoch(tx: Transaction, tenant: str, turn_id: str) -> int:
    """Returns the highest epoch that an owner of a turn has come with; 0 when none has."""
    row = await tx.fetchrow(
        "SELECT max(owner_epoch) FROM executions WHERE tenant = $1 AND turn_id = $2", tenant, turn_id
    )
    return cast("int | None", row[0]) or 0 if row is not None else 0


async def raise_epoch(tx: Transaction, key: Key, epoch: int) -> None:
    """Notes the epoch of a later owner."""
    await tx.execute(f"UPDATE executions SET owner_epoch = $4 WHERE {_OF_KEY} AND owner_epoch < $4", *key, epoch)  # noqa: S608 - as above


async def taken_up(tx: Transaction, key: Key, executor: str) -> None:
    """Notes that a process begins, or begins again, with an open execution."""
    await tx.execute(
        f"UPDATE executions SET executor = $4, state = $5, dispatch_time = NULL"  # noqa: S608 - as above
        f" WHERE {_OF_KEY} AND end_time IS NULL",
        *key,
        executor,
        execution_pb2.EXECUTION_STATE_PREPARED,
    )


async def dispatched(tx: Transaction, key: Key, executor: str) -> bool:
    """Notes that a prepared execution is sent now; False when it is no longer prepared, or another process has it."""
    changed = await tx.execute(
        f"UPDATE executions SET state = $4, dispatch_time = $5"  # noqa: S608 - as above
        f" WHERE {_OF_KEY} AND state = $6 AND executor = $7 AND stop_time IS NULL",
        *key,
        execution_pb2.EXECUTION_STATE_DISPATCHED,
        now(),
        execution_pb2.EXECUTION_STATE_PREPARED,
        executor,
    )
    return changed == 1


async def ended(
    tx: Transaction, key: Key, executor: str, state: State.ValueType, result: bytes, snapshot: str = ""
) -> bool:
    """Notes an outcome; False when there is one already, or when another process has the execution."""
    changed = await tx.execute(
        f"UPDATE executions SET state = $4, result = $5, end_time = $6, workspace_snapshot = $7"  # noqa: S608 - as above
        f" WHERE {_OF_KEY} AND end_time IS NULL AND executor = $8",
        *key,
        state,
        result,
        now(),
        snapshot,
        executor,
    )
    return changed == 1


async def resolved(tx: Transaction, key: Key, resolution: int, state: State.ValueType, result: bytes) -> None:
    """Notes what was decided about an execution whose outcome was lost."""
    await tx.execute(
        f"UPDATE executions SET resolution = $4, state = $5, result = $6 WHERE {_OF_KEY}",  # noqa: S608 - as above
        *key,
        resolution,
        state,
        result,
    )


async def wish_stop(tx: Transaction, key: Key) -> None:
    """Notes that an execution is to be stopped by the process that runs it."""
    await tx.execute(
        f"UPDATE executions SET stop_time = $4 WHERE {_OF_KEY} AND end_time IS NULL AND stop_time IS NULL",  # noqa: S608 - as above
        *key,
        now(),
    )


async def to_stop(tx: Transaction, executor: str) -> list[ExecutionRow]:
    """Returns the open executions of a process that somebody wants stopped."""
    rows = await tx.fetch(
        f"SELECT {_COLUMNS} FROM executions WHERE end_time IS NULL AND executor = $1 AND stop_time IS NOT NULL",  # noqa: S608 - as above
        executor,
    )
    return [_row(row) for row in rows]


async def abandoned(tx: Transaction) -> list[ExecutionRow]:
    """Returns the open executions of processes without a lease that they had sent."""
    rows = await tx.fetch(
        f"SELECT {_COLUMNS} FROM executions WHERE end_time IS NULL AND state = $1"  # noqa: S608 - as above
        " AND executor NOT IN (SELECT executor FROM executors WHERE expire_time > $2)",
        execution_pb2.EXECUTION_STATE_DISPATCHED,
        await tx.now(),
    )
    return [_row(row) for row in rows]


async def forget_ended(tx: Transaction, before: int) -> int:
    """Removes what ended before a time; returns how many rows that were."""
    return await tx.execute("DELETE FROM executions WHERE end_time IS NOT NULL AND end_time < $1", before)


def now() -> int:
    """Returns the time in microseconds since 1970."""
    return time.time_ns() // 1000


def _row(row: Row) -> ExecutionRow:
    values = list(row)
    values[8] = bool(values[8])
    return ExecutionRow(*values)  # pyright: ignore[reportArgumentType] - the columns are those of the statement
