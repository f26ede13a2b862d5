"""Turns that go out, and turns that come in: as records, with all that is in their logs and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire import __version__
from turnwire.agent import records
from turnwire.agent.log.reading import read_turn
from turnwire.agent.log.writer import FORMAT
from turnwire.agent.store import clock, events, requests, sessions, turns
from turnwire.agent.store.turns import TurnRow
from turnwire.agent.v1 import agent_service_pb2 as messages
from turnwire.agent.v1 import event_pb2, turn_pb2
from turnwire.errors import (
    AlreadyExists,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    ResourceInUse,
    SessionBusy,
    TurnDeleted,
)
from turnwire.fold import TERMINAL_STATUSES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from turnwire.agent.agents import Agents
    from turnwire.agent.records import Recording
    from turnwire.agent.turn.history import History
    from turnwire.agent.v1 import agent_pb2
    from turnwire.runtime.storage import Store, Transaction

MAX_BYTES = 128 * 1024 * 1024
"""An import is looked at as a whole before anything of it is written, so it is bounded."""


class Transfer:
    """Exports and imports turns that have ended."""

    def __init__(self, store: Store, agents: Agents, history: History) -> None:
        """Works on the turns of `store`."""
        self._store = store
        self._agents = agents
        self._history = history

    async def exported(self, tenant: str, turn_id: str) -> Iterator[messages.TurnRecord]:
        """Returns the records of a turn.

        Raises:
            NotFound: there is none of that id.
            ResourceInUse: it has not ended.
        """

        async def unit(tx: Transaction) -> tuple[TurnRow, list[event_pb2.StepEvent], agent_pb2.AgentConfig] | None:
            found = await read_turn(tx, tenant, turn_id)
            if found is None:
                return None
            return *found, await events.config(tx, tenant, found[0].config_digest)

        found = await self._store.read(unit)
        if found is None:
            raise NotFound("turn", turn_id)
        row, log, config = found
        if row.status not in TERMINAL_STATUSES:
            told = f"Turn {turn_id} has not ended: wait for its end, or cancel it, and export it then."
            raise ResourceInUse("turn", turn_id, used_by="its run", told=told)
        header = messages.TurnRecordHeader(
            format=records.FORMAT,
            turn_id=turn_id,
            session_id=row.session_id,
            config=config,
            turnwire_version=__version__,
        )
        history = await self._history.before(tenant, row.session_id, row.ordinal)
        return records.written(header, await self._agent(tenant, log), history, log)

    async def imported(self, tenant: str, requests_in: AsyncIterator[messages.ImportTurnRequest]) -> turn_pb2.Turn:
        """Takes a turn in, as the next one of a session; the same again is no error. Returns it without its steps.

        Raises:
            InvalidArgument: the records are not those of a whole, unaltered turn.
            NotFound: there is no such session.
            AlreadyExists: another turn has the id.
            TurnDeleted: a turn had the id.
            MessageTooLarge: it is larger than imports may be.
        """
        session_id, turn_id, taken = "", "", list[messages.TurnRecord]()
        size = 0
        first = True
        async for request in requests_in:
            if first:
                session_id, turn_id, first = request.session_id, request.turn_id, False
                # Before the rest is taken: nobody sends megabytes to a session that is not there.
                await self._check_session(tenant, session_id)
            size += request.ByteSize()
            if size > MAX_BYTES:
                raise MessageTooLarge(size_bytes=size, limit_bytes=MAX_BYTES)
            taken.append(request.record)
        if not session_id:
            raise InvalidArgument.one("session_id", "is required in the first message")
        recording = records.read(taken)
        return await self._store_turn(tenant, session_id, turn_id or recording.header.turn_id, recording)

    async def _check_session(self, tenant: str, session_id: str) -> None:
        if not session_id:
            return

        async def unit(tx: Transaction) -> bool:
            return await sessions.get(tx, tenant, session_id) is not None

        if not await self._store.read(unit):
            raise NotFound("session", session_id)

    async def _store_turn(self, tenant: str, session_id: str, turn_id: str, recording: Recording) -> turn_pb2.Turn:
        state = recording.turn
        digest = f"import {recording.sha256} {session_id}"

        async def unit(tx: Transaction) -> None:
            known = await turns.get(tx, tenant, turn_id)
            if known is not None:
                if known.request_digest != digest:
                    raise AlreadyExists("turn", turn_id)
                return
            if await requests.tombstone(tx, tenant, turn_id) is not None:
                raise TurnDeleted(turn_id)
            session = await sessions.get(tx, tenant, session_id)
            if session is None:
                raise NotFound("session", session_id)
            ordinal = session.last_ordinal + 1
            now = clock.now_microseconds()
            row = TurnRow(
                turn_id=turn_id,
                session_id=session_id,
                ordinal=ordinal,
                status=state.status,
                request_digest=digest,
                config_digest=state.config_digest,
                owner="",
                epoch=1,
                sequence_ceiling=state.last_sequence,
                disconnect_policy=0,
                expire_time=None,
                metadata=None,
                create_time=now,
                format=FORMAT,
            )
            if not await turns.insert(tx, tenant, row):
                raise SessionBusy(session_id=session_id, turn_id=turn_id)
            await sessions.accept_turn(tx, tenant, session_id, ordinal, now)
            config = recording.header.config.SerializeToString(deterministic=True)
            await events.pin_config(tx, tenant, state.config_digest, config)
            place = _Place(turn_id, session_id, session.agent_id, ordinal)
            await events.append(tx, tenant, turn_id, [place.taken(event) for event in recording.events])

        await self._store.write(unit)

        async def look(tx: Transaction) -> tuple[TurnRow, list[event_pb2.StepEvent]] | None:
            return await read_turn(tx, tenant, turn_id)

        found = await self._store.read(look)
        if found is None:
            raise NotFound("turn", turn_id)
        kept = records.Recording(messages.TurnRecordHeader(turn_id=turn_id), found[1], "").turn
        del kept.steps[:]
        return kept

    async def _agent(self, tenant: str, log: list[event_pb2.StepEvent]) -> agent_pb2.Agent | None:
        started = next(event.turn_started for event in log if event.WhichOneof("payload") == "turn_started")
        try:
            return await self._agents.get(tenant, started.agent_id, started.agent_version)
        except NotFound:
            return None  # deleted since; its configuration stands in the header


class _Place:
    """Where an imported turn stands now."""

    def __init__(self, turn_id: str, session_id: str, agent_id: str, ordinal: int) -> None:
        self._turn_id = turn_id
        self._session_id = session_id
        self._agent_id = agent_id
        self._ordinal = ordinal

    def taken(self, event: event_pb2.StepEvent) -> event_pb2.StepEvent:
        """Returns an event as it stands there."""
        moved = event_pb2.StepEvent()
        moved.CopyFrom(event)
        moved.turn_id = self._turn_id
        match moved.WhichOneof("payload"):
            case "turn_started":
                beginning = moved.turn_started
            case "turn_queued":
                beginning = moved.turn_queued
            case _:
                return moved
        beginning.session_id = self._session_id
        beginning.agent_id = self._agent_id
        beginning.ordinal = self._ordinal
        return moved
