"""Sessions: conversations with an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent import idempotency
from turnwire.agent.store import clock, requests, sessions, turns
from turnwire.agent.v1 import agent_service_pb2, session_pb2
from turnwire.errors import InvalidArgument, NotFound, ResourceInUse, SessionBusy
from turnwire.fold import TERMINAL_STATUSES
from turnwire.ids import new_id
from turnwire.runtime.paging import decode_position, encode_position, page_size

if TYPE_CHECKING:
    from turnwire.agent.agents import Agents
    from turnwire.agent.live.control import TurnControl
    from turnwire.agent.live.named import Named
    from turnwire.agent.turn.history import History
    from turnwire.runtime.storage import Store, Transaction

_FIELDS = ("title", "metadata", "agent_version")


class Sessions:
    """Keeps the sessions of all tenants."""

    def __init__(self, store: Store, agents: Agents, control: TurnControl, history: History, named: Named) -> None:
        """Cancels through `control`; what is deleted is forgotten by `history`."""
        self._store = store
        self._agents = agents
        self._control = control
        self._history = history
        self._named = named

    async def create(self, tenant: str, request: agent_service_pb2.CreateSessionRequest) -> session_pb2.Session:
        """Begins a session."""
        agent = await self._agents.get(tenant, request.agent_id, request.agent_version)
        config = agent.config
        now = clock.now()
        session = session_pb2.Session(
            session_id=new_id("sess"),
            agent_id=request.agent_id,
            agent_version=request.agent_version,
            title=request.title,
            metadata=request.metadata,
            create_time=now,
            update_time=now,
            persistent=not config.HasField("enable_session_persistence") or config.enable_session_persistence,
        )
        return await self._insert(tenant, request, request.request_id, session)

    async def fork(self, tenant: str, request: agent_service_pb2.ForkSessionRequest) -> session_pb2.Session:
        """Begins a session whose history is that of another one up to a turn."""

        async def look(tx: Transaction) -> tuple[session_pb2.Session, turns.TurnRow | None]:
            origin = await sessions.get(tx, tenant, request.session_id)
            if origin is None:
                raise NotFound("session", request.session_id)
            return origin, await _fork_turn(tx, tenant, request)

        origin, turn = await self._store.read(look)
        now = clock.now()
        fork = session_pb2.Session(
            session_id=new_id("sess"),
            agent_id=origin.agent_id,
            agent_version=origin.agent_version,
            title=request.title or origin.title,
            metadata=request.metadata,
            create_time=now,
            update_time=now,
            persistent=origin.persistent,
        )
        if turn is not None:
            fork.last_ordinal = turn.ordinal
            fork.forked_from.session_id = request.session_id
            fork.forked_from.turn_id = turn.turn_id
            fork.forked_from.ordinal = turn.ordinal
        elif origin.HasField("forked_from"):
            fork.last_ordinal = origin.forked_from.ordinal
            fork.forked_from.CopyFrom(origin.forked_from)
        return await self._insert(tenant, request, request.request_id, fork)

    async def get(self, tenant: str, session_id: str) -> session_pb2.Session:
        """Returns a session.

        Raises:
            NotFound: there is no such session.
        """

        async def unit(tx: Transaction) -> session_pb2.Session | None:
            return await sessions.get(tx, tenant, session_id)

        found = await self._store.read(unit)
        if found is None:
            raise NotFound("session", session_id)
        return found

    async def page(self, tenant: str, agent_id: str, size: int, token: str) -> tuple[list[session_pb2.Session], str]:
        """Returns a page of the sessions, newest first, and the token of the next."""
        limit = page_size(size)
        created, session_id = decode_position(token, (2**62, ""))

        async def unit(tx: Transaction) -> list[session_pb2.Session]:
            return await sessions.page(tx, tenant, agent_id, (int(created), str(session_id)), limit + 1)

        found = await self._store.read(unit)
        if len(found) <= limit:
            return found, ""
        last = found[limit - 1]
        return found[:limit], encode_position(clock.microseconds(last.create_time), last.session_id)

    async def update(self, tenant: str, request: agent_service_pb2.UpdateSessionRequest) -> session_pb2.Session:
        """Changes a session."""
        paths = request.update_mask.paths or _FIELDS
        current = await self.get(tenant, request.session.session_id)
        if "agent_version" in paths and request.session.agent_version:
            await self._agents.get(tenant, current.agent_id, request.session.agent_version)

        async def unit(tx: Transaction) -> session_pb2.Session:
            session = await sessions.get(tx, tenant, request.session.session_id)
            if session is None:
                raise NotFound("session", request.session.session_id)
            if "title" in paths:
                session.title = request.session.title
            if "agent_version" in paths:
                session.agent_version = request.session.agent_version
            if "metadata" in paths:
                session.metadata.clear()
                session.metadata.update(request.session.metadata)
            session.update_time.CopyFrom(clock.now())
            await sessions.replace(tx, tenant, session)
            return session

        return await self._store.write(unit)

    async def delete(self, tenant: str, session_id: str, *, force: bool) -> None:
        """Deletes a session and its turns; with `force` its turns that have not ended are cancelled first.

        Raises:
            SessionBusy: a turn runs, awaits input or is queued.
            ResourceInUse: the history of another session refers to it.
        """
        await self.get(tenant, session_id)
        unfinished = await self._store.read(lambda tx: turns.unfinished(tx, tenant, session_id))
        if unfinished and not force:
            raise SessionBusy(session_id=session_id, turn_id=unfinished[0].turn_id)
        # The last one first: none of them begins while those before it end.
        for row in reversed(unfinished):
            request = agent_service_pb2.CancelTurnRequest(turn_id=row.turn_id, reason="the session is deleted")
            await self._control.cancel(tenant, request)
        await self.erase(tenant, session_id)

    async def erase(self, tenant: str, session_id: str) -> None:
        """Removes a session in which no turn is active, its turns and its memory bank.

        The bank goes first: while the memory service is away nothing is removed, and it is tried again.
        """
        session = await self.get(tenant, session_id)
        if session.bank_id and not session.active_turn_id:
            await self._named.remove_bank(session.bank_id)

        async def unit(tx: Transaction) -> list[str]:
            unfinished = await turns.unfinished(tx, tenant, session_id)
            if unfinished:
                raise SessionBusy(session_id=session_id, turn_id=unfinished[0].turn_id)
            forks = await sessions.forks_of(tx, tenant, session_id)
            if forks:
                raise ResourceInUse("session", session_id, used_by=f"its fork {forks[0].session_id}")
            removed = await turns.of_session(tx, tenant, session_id, 2**62)
            for turn in removed:
                await turns.delete(tx, tenant, turn.turn_id)
                await requests.bury(tx, tenant, turn.turn_id, requests.DELETED)
            await sessions.delete(tx, tenant, session_id)
            return [turn.turn_id for turn in removed]

        for turn_id in await self._store.write(unit):
            self._history.forget(tenant, turn_id)

    async def _insert(
        self,
        tenant: str,
        request: agent_service_pb2.CreateSessionRequest | agent_service_pb2.ForkSessionRequest,
        request_id: str,
        session: session_pb2.Session,
    ) -> session_pb2.Session:
        async def unit(tx: Transaction) -> session_pb2.Session:
            earlier = await idempotency.earlier(tx, tenant, request_id, request)
            if earlier is not None:
                found = await sessions.get(tx, tenant, earlier)
                if found is None:
                    raise NotFound("session", earlier)
                return found
            await sessions.insert(tx, tenant, session)
            await idempotency.remember(tx, tenant, request_id, request, session.session_id)
            return session

        return await self._store.write(unit)


async def _fork_turn(
    tx: Transaction, tenant: str, request: agent_service_pb2.ForkSessionRequest
) -> turns.TurnRow | None:
    """The last turn of a fork's history; None when the session has none that ended."""
    if request.turn_id:
        row = await turns.get(tx, tenant, request.turn_id)
        if row is None or row.session_id != request.session_id:
            raise NotFound("turn", request.turn_id)
        if row.status not in TERMINAL_STATUSES:
            raise InvalidArgument.one("turn_id", "the turn has not ended; fork at one that has")
        return row
    ended = [
        row for row in await turns.of_session(tx, tenant, request.session_id, 2**62) if row.status in TERMINAL_STATUSES
    ]
    return ended[-1] if ended else None
