"""The one writer of a turn's log."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from turnwire.agent.log.boundaries import committing
from turnwire.agent.log.merge import byte_length, merged, pieces
from turnwire.agent.store import clock, events, inbox, ownership, sessions, turns
from turnwire.agent.v1 import event_pb2, turn_pb2
from turnwire.common.v1 import message_pb2, shield_pb2
from turnwire.errors import NotOwner, StoreUnavailable
from turnwire.fold import TERMINAL_PAYLOADS
from turnwire.runtime.failpoints import Boundary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from turnwire.agent.log.turn_log import TurnLog
    from turnwire.runtime.storage import Store, Transaction, Unit

T = TypeVar("T")
_log = structlog.get_logger(__name__)

FORMAT = 1
"""The format of the events that this version stores."""
CEILING_STEP = 4096
"""So many numbers are reserved at a time."""
_CEILING_RESERVE = 1024
_CEILING = Boundary("agent.ceiling")
UNSTORED_BYTES = 1024 * 1024
"""A turn writes no further while more than this is not stored."""
_EVENT_BYTES = 100
"""What an event has beside its text, about."""
_FINISHED = frozenset({turn_pb2.TURN_STATUS_COMPLETED, turn_pb2.TURN_STATUS_FAILED, turn_pb2.TURN_STATUS_CANCELLED})


class Successor(Protocol):
    """What is committed with the end of a turn: the start of the next one in its session."""

    async def begin(self, tx: Transaction, tenant: str, session_id: str) -> object:
        """Starts the turn that has waited longest; returns what `begun` is given after the commit."""
        ...

    def begun(self, tenant: str, what: object) -> None:
        """Runs what was started."""
        ...


def draft(turn_id: str, payload: str, value: object, step_id: str = "") -> event_pb2.StepEvent:
    """Makes an event without a number."""
    event = event_pb2.StepEvent(turn_id=turn_id, step_id=step_id, format=FORMAT)
    event.event_time.CopyFrom(clock.now())
    getattr(event, payload).CopyFrom(value)
    return event


class TurnWriter:
    """Appends to the log of a turn under one epoch of ownership."""

    def __init__(
        self,
        store: Store,
        log: TurnLog,
        tenant: str,
        session_id: str,
        epoch: int,
        *,
        lit: Callable[[], Awaitable[None]],
        successor: Successor,
        held: bytes | None = None,
    ) -> None:
        """Writes in `epoch`: who took the turn over since is found out, and nothing more is stored.

        `lit` returns when the lease of this process is good: until then nothing is shown, and nothing begun. `held` is
        what waits for its shields; it is stored with the event that tells so.
        """
        self.lit = lit
        self._store = store
        self._log = log
        self._tenant = tenant
        self._session_id = session_id
        self._epoch = epoch
        self._successor = successor
        self._held = held
        self._lost = False
        self._unstored_bytes = 0
        self._status: turn_pb2.TurnStatus.ValueType = turn_pb2.TURN_STATUS_RUNNING
        self._expire_time: int | None = None
        self._offsets: dict[tuple[str, int, int, str], int] = {}
        self._extension: asyncio.Task[None] | None = None
        # What is done at once within a step is committed one after the other.
        self._turnstile = asyncio.Lock()
        self._commits: set[asyncio.Task[None]] = set()

    def delta(
        self,
        step_id: str,
        attempt: int,
        part: event_pb2.DeltaPart.ValueType,
        text: str,
        *,
        call_id: str = "",
        offset: int | None = None,
        tool_name: str = "",
        parse_status: message_pb2.ToolCallParseStatus.ValueType = message_pb2.TOOL_CALL_PARSE_STATUS_UNSPECIFIED,
    ) -> None:
        """Appends a piece of text; it is stored with the next boundary event.

        It goes on where the last piece ended, unless `offset` says that its text begins anew.
        """
        key = (step_id, attempt, part, call_id)
        if offset is not None:
            self._offsets[key] = offset
        for piece in pieces(text):
            begin = self._offsets.get(key, 0)
            event = event_pb2.StepEvent(turn_id=self._log.turn_id, step_id=step_id, format=FORMAT)
            event.event_time.CopyFrom(clock.now())
            delta = event.step_delta
            delta.attempt = attempt
            delta.part = part
            delta.call_id = call_id
            delta.offset = begin
            delta.text = piece
            delta.tool_name = tool_name
            delta.parse_status = parse_status
            length = byte_length(piece)
            self._offsets[key] = begin + length
            self._log.append_delta(event)
            self._unstored_bytes += length + _EVENT_BYTES
        if self._log.ceiling - self._log.next_sequence < _CEILING_RESERVE and self._extension is None:
            self._extension = asyncio.create_task(self._extend(), name=f"ceiling {self._log.turn_id}")

    async def room(self) -> None:
        """Returns when more text may be written: at once, or after what there is was stored."""
        if self._unstored_bytes > UNSTORED_BYTES:
            await self.commit(())

    async def commit(self, drafts: Sequence[event_pb2.StepEvent]) -> None:
        """Appends boundary events and returns when they, and all deltas before them, are stored and may be acted on.

        While the store is away it is asked again and again: the turn waits, nothing is shown. A commit that has begun
        goes on when its caller is cancelled: what is stored has to be known to be stored.

        Raises:
            NotOwner: another process has taken the turn over.
        """
        commit = asyncio.create_task(self._commit_in_turn(drafts), name=f"commit {self._log.turn_id}")
        self._commits.add(commit)
        commit.add_done_callback(self._committed)
        await asyncio.shield(commit)
        await self.lit()

    def give_up(self) -> None:
        """Stores nothing that waits for the store: another process may own the turn by then."""
        self._lost = True

    async def settle(self) -> None:
        """Waits for the commits that have begun, those of cancelled callers too."""
        await asyncio.gather(*self._commits, return_exceptions=True)

    def _committed(self, commit: asyncio.Task[None]) -> None:
        self._commits.discard(commit)
        if not commit.cancelled() and commit.exception() is not None:
            # Its caller is told, unless it is gone; then the next commit meets the same.
            _log.info("commit_failed", turn_id=self._log.turn_id, error=str(commit.exception()))

    async def _commit_in_turn(self, drafts: Sequence[event_pb2.StepEvent]) -> None:
        async with self._turnstile:
            await self._commit(drafts)

    async def _commit(self, drafts: Sequence[event_pb2.StepEvent]) -> None:
        self._log.append_boundary(drafts)
        self._note_status(drafts)
        holds = any(event.turn_input_received.held_call_ids for event in drafts)
        passed = self._has_passed(drafts)
        batch = list(merged(stored_form(event) for event in self._log.unstored()))
        self._unstored_bytes = 0
        sequence = self._log.next_sequence - 1
        finished = self._status in _FINISHED
        ceiling = max(self._log.ceiling, sequence + CEILING_STEP)

        async def unit(tx: Transaction) -> object:
            if finished:
                # First, so that all who change the order of a session's turns do it one after the other.
                await sessions.touch(tx, self._tenant, self._session_id, clock.now_microseconds())
            await self._advance(tx, ceiling)
            if holds and self._held is not None:
                await turns.hold(tx, self._tenant, self._log.turn_id, self._held)
            if passed:
                await turns.forget_held(tx, self._tenant, self._log.turn_id)
            await events.append(tx, self._tenant, self._log.turn_id, batch)
            await self._answer_inbox(tx, drafts)
            if not finished:
                return None
            await inbox.clear(tx, self._tenant, self._log.turn_id)
            return await self._successor.begin(tx, self._tenant, self._session_id)

        async with committing(drafts):
            next_turn = await self._write(unit)
        self._log.commit(sequence, ceiling)
        if next_turn is not None:
            self._successor.begun(self._tenant, next_turn)

    async def _answer_inbox(self, tx: Transaction, drafts: Sequence[event_pb2.StepEvent]) -> None:
        for event in drafts:
            if event.WhichOneof("payload") == "turn_input_received":
                await inbox.remove(tx, self._tenant, self._log.turn_id, event.turn_input_received.request_id)

    async def close(self) -> None:
        """Waits for what is still being written."""
        await self.settle()
        if self._extension is not None:
            await asyncio.gather(self._extension, return_exceptions=True)

    async def _extend(self) -> None:
        ceiling = self._log.next_sequence + CEILING_STEP

        async def unit(tx: Transaction) -> None:
            reserved = await ownership.reserve(
                tx, self._tenant, self._log.turn_id, epoch=self._epoch, sequence_ceiling=ceiling
            )
            if not reserved:
                raise NotOwner(self._log.turn_id)

        try:
            async with _CEILING:
                await self._write(unit)
            self._log.commit(0, ceiling)
        except NotOwner:
            _log.warning("ceiling_refused", turn_id=self._log.turn_id, epoch=self._epoch)
        finally:
            self._extension = None

    async def _advance(self, tx: Transaction, ceiling: int) -> None:
        owned = await ownership.advance(
            tx,
            self._tenant,
            self._log.turn_id,
            epoch=self._epoch,
            status=self._status,
            sequence_ceiling=ceiling,
            expire_time=self._expire_time,
        )
        if not owned:
            raise NotOwner(self._log.turn_id)

    async def patiently(self, use: Callable[[], Awaitable[T]]) -> T:
        """Uses the store, again and again while it is away.

        Raises:
            NotOwner: another process has the turn meanwhile.
        """
        delay = 0.05
        while True:
            if self._lost:
                raise NotOwner(self._log.turn_id)
            try:
                return await use()
            except StoreUnavailable as error:
                _log.warning("store_unavailable", turn_id=self._log.turn_id, error=error.message, retry_seconds=delay)
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
                delay = min(delay * 2, 2.0)

    async def _write(self, unit: Unit[T]) -> T:
        return await self.patiently(lambda: self._store.write(unit))

    def _has_passed(self, drafts: Sequence[event_pb2.StepEvent]) -> bool:
        """True when what waited for its shields stands in these events as it passed, or is gone for good."""
        ended: set[str] = set()
        for event in drafts:
            if event.step_completed.WhichOneof("result") == "shield_call":
                step = self._log.fold.step(event.step_id)
                if step is not None and step.shield_call.point == shield_pb2.SHIELD_POINT_INPUT:
                    return True
            elif event.WhichOneof("payload") == "tool_call_completed":
                ended.add(event.tool_call_completed.result.call_id)
        if not ended:
            return False
        steps = self._log.fold.turn.steps
        held = {each.call.call_id for step in steps for each in step.tool_execution.executions if each.held}
        return bool(held) and held <= ended

    def _note_status(self, drafts: Sequence[event_pb2.StepEvent]) -> None:
        for event in drafts:
            match event.WhichOneof("payload"):
                case "turn_awaiting_input":
                    self._status = turn_pb2.TURN_STATUS_AWAITING_INPUT
                    self._expire_time = clock.microseconds(event.turn_awaiting_input.awaited_input.expire_time)
                case "turn_input_received":
                    self._note_answers(event.turn_input_received)
                case "turn_completed":
                    self._status = turn_pb2.TURN_STATUS_COMPLETED
                case "turn_failed":
                    self._status = turn_pb2.TURN_STATUS_FAILED
                case "turn_cancelled":
                    self._status = turn_pb2.TURN_STATUS_CANCELLED
                case _:
                    pass
        if self._status != turn_pb2.TURN_STATUS_AWAITING_INPUT:
            self._expire_time = None

    def _note_answers(self, received: event_pb2.TurnInputReceived) -> None:
        """A turn goes on when all is answered; until then it waits, and as long as it did."""
        awaited = self._log.fold.turn.awaited_input
        answered = {answered_call(given) for given in received.inputs}
        if all(request.call.call_id in answered for request in awaited.requests):
            self._status = turn_pb2.TURN_STATUS_RUNNING
        else:
            self._status = turn_pb2.TURN_STATUS_AWAITING_INPUT
            self._expire_time = clock.microseconds(awaited.expire_time)


def answered_call(given: turn_pb2.TurnInput) -> str:
    """Returns the id of the call that an input answers; empty for one of a later version."""
    kind = given.WhichOneof("input")
    return getattr(given, kind).call_id if kind is not None else ""


def stored_form(event: event_pb2.StepEvent) -> event_pb2.StepEvent:
    """Returns an event as it is stored: a final message that is the text of a step is not stored twice."""
    if event.WhichOneof("payload") != "turn_completed" or not event.turn_completed.output_step_id:
        return event
    stored = event_pb2.StepEvent()
    stored.CopyFrom(event)
    stored.turn_completed.output.ClearField("parts")
    stored.turn_completed.output.ClearField("reasoning")
    return stored


def is_terminal(event: event_pb2.StepEvent) -> bool:
    """True for the last event of a log."""
    return event.WhichOneof("payload") in TERMINAL_PAYLOADS
