"""A turn is accepted: checked, numbered, pinned to its configuration, and stored before anyone sees it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.live.attachments import keep_large
from turnwire.agent.live.live_turn import LiveTurn
from turnwire.agent.live.session_queue import MAX_QUEUED
from turnwire.agent.log.turn_log import TurnLog
from turnwire.agent.log.writer import CEILING_STEP, FORMAT, draft
from turnwire.agent.store import clock, events, inbox, requests, sessions, turns
from turnwire.agent.store.inbox import CANCEL, Entry
from turnwire.agent.store.turns import TurnRow
from turnwire.agent.turn.config import overridden
from turnwire.agent.turn.held import input_body
from turnwire.agent.turn.runner import plan
from turnwire.agent.v1 import agent_service_pb2, event_pb2, turn_pb2
from turnwire.agent.validation import check_config
from turnwire.errors import (
    Draining,
    IdempotencyConflict,
    NotFound,
    SessionBusy,
    SessionQueueFull,
    StoreUnavailable,
    TurnCancelledEarly,
    TurnDeleted,
    TurnwireError,
)
from turnwire.fold import TurnFold
from turnwire.ids import new_id, new_trace_id
from turnwire.runtime.failpoints import Boundary, Failpoint
from turnwire.runtime.identity import acting_as, traceparent
from turnwire.runtime.trace_context import trace_id

if TYPE_CHECKING:
    from turnwire.agent.agents import Agents
    from turnwire.agent.live.control import TurnControl
    from turnwire.agent.live.named import Named
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.live.unbroken import Unbroken
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.agent.v1 import agent_pb2, session_pb2
    from turnwire.runtime.storage import Store, Transaction
    from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub


_log = structlog.get_logger(__name__)

_STARTED = Boundary("agent.turn_started")
_QUEUED = Boundary("agent.turn_queued")
"""Of a turn that may have to wait for others: whether it has to, only the commit knows."""
_ACCEPTED = Failpoint("agent.accepted")


@dataclass(slots=True, frozen=True)
class _Accepted:
    row: TurnRow
    events: list[event_pb2.StepEvent]
    interrupts: agent_service_pb2.CancelTurnRequest | None = None


class Acceptance:
    """Accepts turns, each id once."""

    def __init__(
        self,
        store: Store,
        agents: Agents,
        named: Named,
        live: LiveTurns,
        control: TurnControl,
        artifacts: ArtifactServiceStub,
        unbroken: Unbroken,
    ) -> None:
        """Puts accepted turns among the live ones and starts them; large attachments become artifacts.

        What a turn interrupts is cancelled through `control`.
        """
        self._store = store
        self._agents = agents
        self._named = named
        self._live = live
        self._artifacts = artifacts
        self._control = control
        self._unbroken = unbroken
        self._interrupting: set[asyncio.Task[None]] = set()
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def accept(self, tenant: str, request: agent_service_pb2.RunTurnRequest) -> str:
        """Accepts a turn, or finds the one that the same request made before; returns its id.

        A turn that is being stored when its caller leaves runs all the same.
        """
        return await self._unbroken.run(self._accept(tenant, request))

    async def close(self) -> None:
        """Ends what is under way; what was stored of it another process takes up."""
        for task in self._interrupting:
            task.cancel()
        await asyncio.gather(*self._interrupting, return_exceptions=True)

    async def _accept(self, tenant: str, request: agent_service_pb2.RunTurnRequest) -> str:
        turn_id = request.turn_id or new_id("turn")
        key = (tenant, turn_id)
        lock = self._locks[key]
        try:
            async with lock:
                await self._accept_once(tenant, turn_id, request)
        finally:
            if not lock.locked():
                self._locks.pop(key, None)
        return turn_id

    async def _accept_once(self, tenant: str, turn_id: str, request: agent_service_pb2.RunTurnRequest) -> None:
        digest = _digest(request)
        known, session = await self._look(tenant, turn_id, request.session_id)
        if known is not None:
            _check_same(known, digest, turn_id)
            return
        if session is None:
            raise NotFound("session", request.session_id)
        if self._live.draining:
            raise Draining(service="agent")
        if not self._live.lease.good:
            raise StoreUnavailable("agent", "this replica waits for its lease to be renewed")
        agent = await self._agents.get(tenant, session.agent_id, session.agent_version)
        config = await self._config(agent, request.overrides)
        taken = agent_service_pb2.RunTurnRequest()
        taken.CopyFrom(request)
        await keep_large(self._artifacts, taken.messages, turn_id=turn_id, session_id=request.session_id)
        accepted = await self._store_turn(tenant, turn_id, taken, agent, config, digest)
        if accepted is None:
            return
        log = TurnLog(turn_id)
        log.append_boundary(accepted.events)
        log.commit(log.next_sequence - 1, accepted.row.sequence_ceiling)
        if accepted.row.status == turn_pb2.TURN_STATUS_QUEUED:
            self._interrupt(tenant, accepted.interrupts)
            return
        await _ACCEPTED.reached()
        live = self._live.adopt(LiveTurn(tenant=tenant, row=accepted.row, log=log))
        if live is not None:
            self._live.start(live, config)

    def _interrupt(self, tenant: str, request: agent_service_pb2.CancelTurnRequest | None) -> None:
        """Cancels what a turn interrupts. The wish is stored: whatever happens here, it comes true."""
        if request is not None:
            task = asyncio.create_task(self._cancel(tenant, request), name=f"interrupt {request.turn_id}")
            self._interrupting.add(task)
            task.add_done_callback(self._interrupting.discard)

    async def _cancel(self, tenant: str, request: agent_service_pb2.CancelTurnRequest) -> None:
        try:
            with acting_as(tenant):
                await self._control.cancel(tenant, request)
        except TurnwireError as error:
            _log.warning("turn_not_interrupted", turn_id=request.turn_id, error=error.message)

    async def _look(self, tenant: str, turn_id: str, session_id: str) -> tuple[str | None, session_pb2.Session | None]:
        async def unit(tx: Transaction) -> tuple[str | None, session_pb2.Session | None]:
            row = await turns.get(tx, tenant, turn_id)
            if row is not None:
                return row.request_digest, None
            await _check_tombstone(tx, tenant, turn_id)
            return None, await sessions.get(tx, tenant, session_id)

        return await self._store.read(unit)

    async def _config(self, agent: agent_pb2.Agent, overrides: turn_pb2.TurnOverrides) -> TurnConfig:
        config = overridden(agent.config, overrides)
        check_config(config, "overrides.config")
        if overrides.HasField("config"):
            await self._named.check(config, "overrides.config")
        return self._live.pinned(await self._named.pinned(config, "overrides.config"))

    async def _store_turn(
        self,
        tenant: str,
        turn_id: str,
        request: agent_service_pb2.RunTurnRequest,
        agent: agent_pb2.Agent,
        config: TurnConfig,
        digest: str,
    ) -> _Accepted | None:
        """One commit: the turn, its place in the session, its first events. None: it was there already."""
        # The unit runs in the store's thread, which knows nothing of the call.
        trace = trace_id(traceparent()) or new_trace_id()

        async def unit(tx: Transaction) -> _Accepted | None:
            known = await turns.get(tx, tenant, turn_id)
            if known is not None:
                _check_same(known.request_digest, digest, turn_id)
                return None
            await _check_tombstone(tx, tenant, turn_id)
            session = await sessions.get(tx, tenant, request.session_id)
            if session is None:
                raise NotFound("session", request.session_id)
            before = await turns.unfinished(tx, tenant, request.session_id)
            if before:
                _check_busy(request, before)
            ordinal = session.last_ordinal + 1
            bank_id = _session_bank(session, request, config)
            first = _started(turn_id, request, agent, config, ordinal, trace)
            first.turn_started.session_bank_id = bank_id
            fold = TurnFold(turn_id)
            planned, _ = plan(fold, config, [_queued(first, len(before)) if before else first])
            for number, event in enumerate(planned, start=1):
                event.first_sequence = event.sequence = number
            now = clock.now_microseconds()
            runs = fold.turn.status == turn_pb2.TURN_STATUS_RUNNING
            row = TurnRow(
                turn_id=turn_id,
                session_id=request.session_id,
                ordinal=ordinal,
                status=fold.turn.status,
                request_digest=digest,
                config_digest=config.digest,
                owner=self._live.lease.instance_id if runs else "",
                epoch=1,
                sequence_ceiling=len(planned) + (CEILING_STEP if runs else 0),
                disconnect_policy=request.disconnect_policy,
                expire_time=None,
                metadata=None,
                create_time=now,
                held_input=input_body(request.messages) if config.config.input_shields else None,
                format=FORMAT,
                pending_start=first.SerializeToString() if before else None,
            )
            if not await turns.insert(tx, tenant, row):
                raise SessionBusy(session_id=request.session_id, turn_id=turn_id)
            if bank_id != session.bank_id:
                await sessions.set_bank(tx, tenant, session, bank_id)
            await sessions.accept_turn(tx, tenant, request.session_id, ordinal, now)
            await events.pin_config(tx, tenant, config.digest, config.config.SerializeToString(deterministic=True))
            await events.append(tx, tenant, turn_id, planned)
            interrupts = _interrupted(request, before, turn_id)
            if interrupts is not None:
                entry = Entry(CANCEL, CANCEL, interrupts.SerializeToString())
                await inbox.add(tx, tenant, interrupts.turn_id, entry)
            return _Accepted(row, planned, interrupts)

        async with _STARTED if request.busy_policy <= agent_service_pb2.BUSY_POLICY_REJECT else _QUEUED:
            return await self._store.write(unit)


def _check_busy(request: agent_service_pb2.RunTurnRequest, before: list[TurnRow]) -> None:
    """Requires that a turn may wait for those before it in its session."""
    if request.busy_policy <= agent_service_pb2.BUSY_POLICY_REJECT:
        raise SessionBusy(session_id=request.session_id, turn_id=before[0].turn_id)
    queued = sum(1 for row in before if row.status == turn_pb2.TURN_STATUS_QUEUED)
    if queued >= MAX_QUEUED:
        raise SessionQueueFull(request.session_id, limit=MAX_QUEUED)


def _interrupted(
    request: agent_service_pb2.RunTurnRequest, before: list[TurnRow], turn_id: str
) -> agent_service_pb2.CancelTurnRequest | None:
    """Returns the cancelling of the active turn that a turn interrupts, or None."""
    if request.busy_policy != agent_service_pb2.BUSY_POLICY_INTERRUPT:
        return None
    active = next((row for row in before if row.status != turn_pb2.TURN_STATUS_QUEUED), None)
    if active is None:
        return None
    return agent_service_pb2.CancelTurnRequest(turn_id=active.turn_id, reason=f"turn {turn_id} interrupts it")


def _queued(started: event_pb2.StepEvent, position: int) -> event_pb2.StepEvent:
    """Returns the first event of a turn that waits for `position` others."""
    queued = event_pb2.TurnQueued(
        position=position,
        session_id=started.turn_started.session_id,
        agent_id=started.turn_started.agent_id,
        agent_version=started.turn_started.agent_version,
        ordinal=started.turn_started.ordinal,
    )
    return draft(started.turn_id, "turn_queued", queued)


def _started(
    turn_id: str,
    request: agent_service_pb2.RunTurnRequest,
    agent: agent_pb2.Agent,
    config: TurnConfig,
    ordinal: int,
    trace: str,
) -> event_pb2.StepEvent:
    started = event_pb2.TurnStarted(
        session_id=request.session_id,
        agent_id=agent.agent_id,
        agent_version=agent.version,
        ordinal=ordinal,
        # What shields have to pass first is in no event before.
        input=() if config.config.input_shields else request.messages,
        config_digest=config.digest,
        metadata=request.metadata,
        trace_id=trace,
    )
    if request.HasField("overrides"):
        started.overrides.CopyFrom(request.overrides)
    return draft(turn_id, "turn_started", started)


def _session_bank(session: session_pb2.Session, request: agent_service_pb2.RunTurnRequest, config: TurnConfig) -> str:
    """Returns the session's own bank: the one it has, or one that this turn's attachments need."""
    brings = any(message.attachments for message in request.messages) and not config.files_go_to_interpreter
    return session.bank_id or (f"session-{session.session_id}" if brings else "")


def _digest(request: agent_service_pb2.RunTurnRequest) -> str:
    """The hash of what a turn is asked for; how its stream behaves is left out."""
    asked = agent_service_pb2.RunTurnRequest()
    asked.CopyFrom(request)
    asked.ClearField("turn_id")
    asked.ClearField("follow_pauses")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()


def _check_same(known_digest: str, digest: str, turn_id: str) -> None:
    if known_digest != digest:
        raise IdempotencyConflict("turn_id", turn_id)


async def _check_tombstone(tx: Transaction, tenant: str, turn_id: str) -> None:
    match await requests.tombstone(tx, tenant, turn_id):
        case requests.DELETED:
            raise TurnDeleted(turn_id)
        case requests.CANCELLED:
            raise TurnCancelledEarly(turn_id)
        case _:
            return
