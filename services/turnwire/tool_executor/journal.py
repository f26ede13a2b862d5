"""The journal of executions: one row a call, whose unique insert is the lock, and which no later asker can bend.

An execution is prepared, then dispatched, then has an outcome. What was dispatched when its process died is run again
only when the tool is idempotent; otherwise its outcome is unknown, until somebody decides. Each process has a lease:
what one without it has left open is for others to take up.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import ExecutionNotInDoubt, IdempotencyConflict, NotFound, NotOwner, ResourceInUse
from turnwire.runtime.failpoints import Boundary
from turnwire.tool_executor import workspaces
from turnwire.tool_executor.results import failed
from turnwire.tool_executor.store import executions as stored
from turnwire.tool_executor.store import executors
from turnwire.tool_executor.store.executions import ExecutionRow
from turnwire.tool_executor.v1 import execution_pb2, tool_executor_service_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Store, Transaction
    from turnwire.tool_executor.store.executions import Key, State
    from turnwire.tool_executor.workspaces import Changes

_log = structlog.get_logger(__name__)

PREPARED = execution_pb2.EXECUTION_STATE_PREPARED
DISPATCHED = execution_pb2.EXECUTION_STATE_DISPATCHED
_BOUNDARIES = {
    state: Boundary(
        f"tool_executor.{execution_pb2.ExecutionState.Name(state).removeprefix('EXECUTION_STATE_').lower()}"
    )
    for state in (
        PREPARED,
        DISPATCHED,
        execution_pb2.EXECUTION_STATE_SUCCEEDED,
        execution_pb2.EXECUTION_STATE_FAILED,
        execution_pb2.EXECUTION_STATE_CANCELLED,
        execution_pb2.EXECUTION_STATE_OUTCOME_UNKNOWN,
    )
}
_FINDING = Boundary("tool_executor.found")
_FENCING = Boundary("tool_executor.fenced")
_STOPPING = Boundary("tool_executor.left_call_stopped")
_DECISION = Boundary("tool_executor.resolved")
_LEASE = Boundary("tool_executor.lease_held")
_LEASE_END = Boundary("tool_executor.lease_ended")
_RECOVERY = Boundary("tool_executor.recovered")

STOPS = "tool_stops"
"""The topic of calls that the process which runs them is to stop."""
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


@dataclass(frozen=True, slots=True)
class Seen:
    """A call as the journal has it."""

    row: ExecutionRow
    elsewhere: bool
    """Another process runs it."""


class Journal:
    """Writes down executions for one process."""

    def __init__(self, store: Store, executor: str) -> None:
        """`executor` is the id of the process."""
        self._store = store
        self._executor = executor

    async def find(self, ask: Ask, *, here: bool) -> Seen | None:
        """Returns how a call stands that was asked for before; None for a new one. `here`: this process runs it.

        One that a process has left after it was sent has its outcome from now on, if it may not be repeated.

        Raises:
            NotOwner: a later owner of the turn has been here.
            IdempotencyConflict: the call was asked for with something else.
        """

        async def unit(tx: Transaction) -> Seen | None:
            await _fenced(tx, ask.key, ask.owner_epoch)
            row = await stored.get(tx, ask.key)
            if row is None:
                return None
            _check_same(row, ask)
            return await self._seen(tx, row, here=here)

        async with _FINDING:
            return await self._store.write(unit)

    async def look(self, key: Key) -> Seen:
        """Returns how a call stands, and decides nothing.

        Raises:
            NotFound: nobody has asked for it.
        """

        async def unit(tx: Transaction) -> Seen:
            row = await _existing(tx, key)
            return Seen(row, await self._is_elsewhere(tx, row))

        return await self._store.read(unit)

    async def claim(self, ask: Ask, *, tool_id: str, idempotent: bool) -> tuple[Seen, bool]:
        """Takes up a new call, or one that a process has left; returns how it stands, and True when it is this one's.

        Raises:
            NotOwner: a later owner of the turn has been here.
            IdempotencyConflict: the call was asked for with something else.
            ResourceInUse: the call that it repeats still runs.
        """

        async def unit(tx: Transaction) -> tuple[Seen, bool]:
            await _fenced(tx, ask.key, ask.owner_epoch)
            row = await stored.get(tx, ask.key)
            if row is None:
                await self._check_retry(tx, ask)
                row = self._prepared(ask, tool_id, idempotent=idempotent)
                await stored.insert(tx, row)
                return Seen(row, elsewhere=False), True
            _check_same(row, ask)
            seen = await self._seen(tx, row)
            if seen.row.ended or seen.elsewhere:
                return seen, False
            await stored.taken_up(tx, row.key, self._executor)
            return Seen(await _existing(tx, row.key), elsewhere=False), True

        async with _BOUNDARIES[PREPARED]:
            return await self._store.write(unit)

    async def dispatched(self, key: Key) -> bool:
        """Notes that a call is sent now; False when it may not be: it is no longer prepared, or no longer ours."""

        async def unit(tx: Transaction) -> bool:
            return await stored.dispatched(tx, key, self._executor)

        async with _BOUNDARIES[DISPATCHED]:
            return await self._store.write(unit)

    async def ended(
        self, key: Key, state: State.ValueType, result: message_pb2.ToolResult, changes: Changes | None = None
    ) -> ExecutionRow:
        """Notes an outcome of this process, and what it has changed; returns the row with the first that was noted.

        The row is another process's by now, and may be open, when this one was not heard of for too long.
        """

        async def unit(tx: Transaction) -> ExecutionRow:
            snapshot = changes.snapshot_id if changes is not None else ""
            noted = await stored.ended(tx, key, self._executor, state, result.SerializeToString(), snapshot)
            if noted and changes is not None:
                await workspaces.note(tx, key[0], changes)
            return await _existing(tx, key)

        async with _BOUNDARIES[state]:
            return await self._store.write(unit)

    async def get(self, key: Key) -> ExecutionRow:
        """Returns a row.

        Raises:
            NotFound: nobody has asked for the call.
        """

        async def unit(tx: Transaction) -> ExecutionRow:
            return await _existing(tx, key)

        return await self._store.read(unit)

    async def fence(self, key: Key, owner_epoch: int, *, here: bool) -> Seen:
        """Returns how a call stands that its turn's owner wants to stop; earlier owners are refused from now on.

        `here`: this process runs it. A call that has not come yet is noted as stopped, so that it never runs: an owner
        says so with its epoch. The process that runs it elsewhere is told.

        Raises:
            NotOwner: a later owner of the turn has been here.
            NotFound: nobody has asked for the call, and the canceller is no owner.
        """

        async def unit(tx: Transaction) -> Seen:
            await _fenced(tx, key, owner_epoch)
            row = await stored.get(tx, key)
            if row is not None:
                seen = await self._seen(tx, row, here=here)
                if seen.elsewhere:
                    await stored.wish_stop(tx, key)
                    await tx.notify(STOPS, json.dumps(key))
                return seen
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
            return Seen(row, elsewhere=False)

        async with _FENCING:
            return await self._store.write(unit)

    async def stop_left(self, key: Key) -> ExecutionRow:
        """Ends a call that no process has: nothing was sent that counts, or nobody knows what came of it."""

        async def unit(tx: Transaction) -> ExecutionRow:
            seen = await self._seen(tx, await _existing(tx, key))
            if not seen.row.ended and not seen.elsewhere:
                await stored.taken_up(tx, key, self._executor)
                result = stopped(key[2], seen.row.tool_id).SerializeToString()
                await stored.ended(tx, key, self._executor, execution_pb2.EXECUTION_STATE_CANCELLED, result)
            return await _existing(tx, key)

        async with _STOPPING:
            return await self._store.write(unit)

    async def resolve(self, key: Key, result: message_pb2.ToolResult | None) -> ExecutionRow:
        """Takes a decision about a call whose outcome was lost: it has a result, or stays unknown.

        Raises:
            NotFound: nobody has asked for the call.
            ExecutionNotInDoubt: there is nothing to decide, or something else was decided.
        """
        resolution = SKIP if result is None else PROVIDE

        async def unit(tx: Transaction) -> ExecutionRow:
            row = await _existing(tx, key)
            kept = message_pb2.ToolResult.FromString(row.result or b"")
            given = kept
            if result is not None:
                given = message_pb2.ToolResult()
                given.CopyFrom(result)
                given.call_id, given.name = key[2], kept.name
            if row.resolution == resolution and given == kept:
                return row
            if row.state != UNKNOWN or row.resolution:
                raise ExecutionNotInDoubt(key[2], execution_pb2.ExecutionState.Name(row.state))
            state = UNKNOWN if result is None else _state_of(given)
            await stored.resolved(tx, key, resolution, state, given.SerializeToString())
            return await _existing(tx, key)

        async with _DECISION:
            return await self._store.write(unit)

    async def hold(self, seconds: float | None) -> None:
        """Makes the lease of this process last from now; None: it holds the lock of its database, and is alone."""

        async def unit(tx: Transaction) -> None:
            if seconds is None:
                await executors.end_all(tx)
            await executors.take(tx, self._executor, seconds)

        async with _LEASE:
            await self._store.write(unit)

    async def release(self) -> None:
        """Gives the lease back: what this process has left is for whoever looks next."""
        async with _LEASE_END:
            await self._store.write(lambda tx: executors.end(tx, self._executor))

    async def recover(self) -> int:
        """Decides about what processes without a lease have left open; returns how many outcomes are unknown now."""

        async def unit(tx: Transaction) -> int:
            lost = 0
            for row in await stored.abandoned(tx):
                lost += (await self._seen(tx, row)).row.ended
                if row.idempotent:
                    await stored.taken_up(tx, row.key, row.executor)
            return lost

        async with _RECOVERY:
            lost = await self._store.write(unit)
        if lost:
            _log.warning("outcomes_unknown", executions=lost)
        return lost

    async def to_stop(self) -> list[Key]:
        """Returns the calls of this process that somebody wants stopped."""

        async def unit(tx: Transaction) -> list[Key]:
            return [row.key for row in await stored.to_stop(tx, self._executor)]

        return await self._store.read(unit)

    async def forget(self) -> int:
        """Removes outcomes that are too old to be asked for; returns how many."""

        async def unit(tx: Transaction) -> int:
            await executors.sweep(tx)
            return await stored.forget_ended(tx, stored.now() - KEPT_SECONDS * 1_000_000)

        return await self._store.write(unit)

    async def _seen(self, tx: Transaction, row: ExecutionRow, *, here: bool = False) -> Seen:
        """How a call stands; what was sent by a process that has left it, and may not be repeated, ends here."""
        if here:
            return Seen(row, elsewhere=False)
        elsewhere = await self._is_elsewhere(tx, row)
        if row.state == execution_pb2.EXECUTION_STATE_DISPATCHED and not row.idempotent and not elsewhere:
            result = lost_result(row.call_id, row.tool_id).SerializeToString()
            await stored.ended(tx, row.key, row.executor, UNKNOWN, result)
            row = await _existing(tx, row.key)
        return Seen(row, elsewhere)

    async def _is_elsewhere(self, tx: Transaction, row: ExecutionRow) -> bool:
        return not row.ended and row.executor != self._executor and await executors.alive(tx, row.executor)

    async def _check_retry(self, tx: Transaction, ask: Ask) -> None:
        """Refuses to repeat what has not ended: it would run twice at once. What a process has left ends here."""
        earlier = await stored.get(tx, (*ask.key[:2], ask.retry_of)) if ask.retry_of else None
        if earlier is None or earlier.ended:
            return
        if earlier.executor == self._executor or await executors.alive(tx, earlier.executor):
            raise ResourceInUse("execution", ask.retry_of, used_by="the tool: it still runs")
        seen = await self._seen(tx, earlier)
        if not seen.row.ended:
            # It was not sent, or may be repeated; it is no longer, since another call has taken its place.
            result = stopped(earlier.call_id, earlier.tool_id).SerializeToString()
            cancelled = execution_pb2.EXECUTION_STATE_CANCELLED
            await stored.ended(tx, earlier.key, earlier.executor, cancelled, result)

    def _prepared(self, ask: Ask, tool_id: str, *, idempotent: bool) -> ExecutionRow:
        return ExecutionRow(
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


UNKNOWN = execution_pb2.EXECUTION_STATE_OUTCOME_UNKNOWN
SKIP = tool_executor_service_pb2.RESOLUTION_SKIP
PROVIDE = tool_executor_service_pb2.RESOLUTION_PROVIDE


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


def _check_same(row: ExecutionRow, ask: Ask) -> None:
    # What was cancelled before it came has no digest: whatever it was, it never runs.
    if row.request_digest not in {"", ask.digest}:
        raise IdempotencyConflict("call_id", row.call_id)


def _state_of(result: message_pb2.ToolResult) -> State.ValueType:
    if result.HasField("failure"):
        return execution_pb2.EXECUTION_STATE_FAILED
    return execution_pb2.EXECUTION_STATE_SUCCEEDED


async def _existing(tx: Transaction, key: Key) -> ExecutionRow:
    row = await stored.get(tx, key)
    if row is None:
        raise NotFound("execution", key[2])
    return row
