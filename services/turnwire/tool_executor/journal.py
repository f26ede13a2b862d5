"""The journal of executions: one row a call, whose unique insert is the lock, and which no later asker can bend.

An execution is prepared, then dispatched, then has an outcome. What was dispatched when its process died is run again
only when the tool is idempotent; otherwise its outcome is unknown, and stays so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import IdempotencyConflict, NotFound, NotOwner
from turnwire.tool_executor.results import failed
from turnwire.tool_executor.store import executions as stored
from turnwire.tool_executor.store.executions import ExecutionRow
from turnwire.tool_executor.v1 import execution_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Store, Transaction
    from turnwire.tool_executor.store.executions import Key, State
    from turnwire.tool_executor.v1 import tool_executor_service_pb2

_log = structlog.get_logger(__name__)
KEPT_SECONDS = 30 * 24 * 3600
"""So long an outcome is kept: as long as the id of a deleted turn."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody asks to have executed."""

    key: Key
    name: str
    arguments_json: str
    session_id: str
    owner_epoch: int
    retry_of: str

    @property
    def arguments_sha256(self) -> str:
        """The hash of the arguments."""
        return hashlib.sha256(self.arguments_json.encode()).hexdigest()

    @property
    def digest(self) -> str:
        """What has to be equal when the same call is asked for again."""
        whole = "\0".join((self.name, self.session_id, self.retry_of, self.arguments_json))
        return hashlib.sha256(whole.encode()).hexdigest()


def ask_of(tenant: str, request: tool_executor_service_pb2.ExecuteToolRequest) -> Ask:
    """Returns what a request asks for."""
    call = request.call
    return Ask(
        key=(tenant, request.turn_id, call.call_id),
        name=call.name,
        arguments_json=call.arguments_json,
        session_id=request.session_id,
        owner_epoch=request.owner_epoch,
        retry_of=call.retry_of,
    )


class Journal:
    """Writes down executions for one process."""

    def __init__(self, store: Store, executor: str) -> None:
        """`executor` is the id of the process."""
        self._store = store
        self._executor = executor

    async def find(self, ask: Ask) -> ExecutionRow | None:
        """Returns the row of a call that was asked for before; None for a new one.

        Raises:
            NotOwner: a later owner of the turn has been here.
            IdempotencyConflict: the call was asked for with something else.
        """

        async def unit(tx: Transaction) -> ExecutionRow | None:
            await _fenced(tx, ask.key, ask.owner_epoch)
            row = await stored.get(tx, ask.key)
            # What was cancelled before it came has no digest: whatever it was, it never runs.
            if row is not None and row.request_digest not in {"", ask.digest}:
                raise IdempotencyConflict("call_id", row.call_id)
            return row

        return await self._store.write(unit)

    async def begin(self, ask: Ask, *, tool_id: str, idempotent: bool) -> ExecutionRow:
        """Takes a new call up; returns its row."""
        row = ExecutionRow(
            *ask.key,
            tool_id=tool_id,
            request_digest=ask.digest,
            arguments_sha256=ask.arguments_sha256,
            owner_epoch=ask.owner_epoch,
            state=execution_pb2.EXECUTION_STATE_PREPARED,
            idempotent=idempotent,
            executor=self._executor,
            retry_of=ask.retry_of,
            prepare_time=stored.now(),
        )

        async def unit(tx: Transaction) -> None:
            await _fenced(tx, ask.key, ask.owner_epoch)
            await stored.insert(tx, row)

        await self._store.write(unit)
        return row

    async def take_up(self, key: Key) -> None:
        """Takes a call up again that a process has left before anything was sent that counts."""

        async def unit(tx: Transaction) -> None:
            await stored.taken_up(tx, key, self._executor)

        await self._store.write(unit)

    async def dispatched(self, key: Key) -> bool:
        """Notes that a call is sent now; False when it may not be: it is no longer prepared."""

        async def unit(tx: Transaction) -> bool:
            return await stored.dispatched(tx, key)

        return await self._store.write(unit)

    async def ended(self, key: Key, state: State.ValueType, result: message_pb2.ToolResult) -> ExecutionRow:
        """Notes an outcome; returns the row with the first that was noted."""

        async def unit(tx: Transaction) -> ExecutionRow:
            await stored.ended(tx, key, state, result.SerializeToString())
            return await _existing(tx, key)

        return await self._store.write(unit)

    async def get(self, key: Key) -> ExecutionRow:
        """Returns a row.

        Raises:
            NotFound: nobody has asked for the call.
        """

        async def unit(tx: Transaction) -> ExecutionRow:
            return await _existing(tx, key)

        return await self._store.read(unit)

    async def fence(self, key: Key, owner_epoch: int) -> ExecutionRow:
        """Returns the row of a call that its turn's owner wants to stop; earlier owners are refused from now on.

        A call that has not come yet is noted as stopped, so that it never runs: an owner says so with its epoch.

        Raises:
            NotOwner: a later owner of the turn has been here.
            NotFound: nobody has asked for the call, and the canceller is no owner.
        """

        async def unit(tx: Transaction) -> ExecutionRow:
            await _fenced(tx, key, owner_epoch)
            row = await stored.get(tx, key)
            if row is not None:
                return row
            if owner_epoch < 1:
                raise NotFound("execution", key[2])
            now = stored.now()
            row = ExecutionRow(
                *key,
                tool_id="",
                request_digest="",
                arguments_sha256="",
                owner_epoch=owner_epoch,
                state=execution_pb2.EXECUTION_STATE_CANCELLED,
                idempotent=False,
                executor=self._executor,
                prepare_time=now,
                end_time=now,
                result=stopped(key[2], "").SerializeToString(),
            )
            await stored.insert(tx, row)
            return row

        return await self._store.write(unit)

    async def recover(self) -> int:
        """Decides about what other processes have left open; on SQLite there are no others that live.

        Returns how many outcomes are unknown from now on.
        """

        async def unit(tx: Transaction) -> int:
            lost = 0
            for row in await stored.open_of_others(tx, self._executor):
                if row.state == execution_pb2.EXECUTION_STATE_DISPATCHED and not row.idempotent:
                    await stored.ended(tx, row.key, UNKNOWN, lost_result(row.call_id, row.tool_id).SerializeToString())
                    lost += 1
                else:
                    await stored.taken_up(tx, row.key, row.executor)
            return lost

        lost = await self._store.write(unit)
        if lost:
            _log.warning("outcomes_unknown", executions=lost)
        return lost

    async def forget(self) -> int:
        """Removes outcomes that are too old to be asked for; returns how many."""

        async def unit(tx: Transaction) -> int:
            return await stored.forget_ended(tx, stored.now() - KEPT_SECONDS * 1_000_000)

        return await self._store.write(unit)


UNKNOWN = execution_pb2.EXECUTION_STATE_OUTCOME_UNKNOWN


def stopped(call_id: str, tool_id: str) -> message_pb2.ToolResult:
    """Returns the result of a call that was stopped."""
    return failed(call_id, tool_id, error_pb2.ERROR_REASON_CANCELLED, "The call was stopped.")


def lost_result(
    call_id: str, tool_id: str, why: str = "the process that executed it has died"
) -> message_pb2.ToolResult:
    """Returns the result of a call that was sent and whose outcome was lost."""
    return failed(
        call_id,
        tool_id,
        error_pb2.ERROR_REASON_OUTCOME_UNKNOWN,
        f"What {tool_id} did is not known: {why}. It is not repeated by itself; look at what it may have done.",
    )


def described(row: ExecutionRow) -> execution_pb2.Execution:
    """Returns a row as the contract has it."""
    execution = execution_pb2.Execution(
        call_id=row.call_id,
        turn_id=row.turn_id,
        tool_id=row.tool_id,
        arguments_sha256=row.arguments_sha256,
        owner_epoch=row.owner_epoch,
        state=row.state,
        retry_of=row.retry_of,
        workspace_snapshot=row.workspace_snapshot,
    )
    execution.prepare_time.FromMicroseconds(row.prepare_time)
    if row.dispatch_time is not None:
        execution.dispatch_time.FromMicroseconds(row.dispatch_time)
    if row.end_time is not None:
        execution.end_time.FromMicroseconds(row.end_time)
    if row.result is not None:
        execution.result.ParseFromString(row.result)
    return execution


async def _fenced(tx: Transaction, key: Key, owner_epoch: int) -> None:
    """Refuses an owner that is none any more; the epoch counts for all calls of its turn."""
    tenant, turn_id, _ = key
    if owner_epoch < await stored.highest_epoch(tx, tenant, turn_id):
        raise NotOwner(turn_id)
    await stored.raise_epoch(tx, key, owner_epoch)


async def _existing(tx: Transaction, key: Key) -> ExecutionRow:
    row = await stored.get(tx, key)
    if row is None:
        raise NotFound("execution", key[2])
    return row
