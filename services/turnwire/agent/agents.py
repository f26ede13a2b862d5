"""Agents: named, versioned configurations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from turnwire.agent import idempotency
from turnwire.agent.assistant import AGENT_ID, assistant
from turnwire.agent.store import agents, clock, sessions
from turnwire.agent.v1 import agent_pb2, agent_service_pb2
from turnwire.agent.validation import check_config
from turnwire.errors import EtagMismatch, InvalidArgument, NotFound, ResourceInUse, TurnwireError
from turnwire.ids import new_id
from turnwire.runtime.paging import decode_position, encode_position, page_size

if TYPE_CHECKING:
    from turnwire.agent.live.named import Named
    from turnwire.agent.sessions import Sessions
    from turnwire.runtime.settings import AssistantSettings
    from turnwire.runtime.storage import Store, Transaction

_FIELDS = ("name", "description", "metadata", "config")


class Agents:
    """Keeps the agents of all tenants."""

    def __init__(self, store: Store, named: Named, ready_made: AssistantSettings) -> None:
        """`ready_made` is what the agent `assistant` has; without a model it takes the first that is served."""
        self._store = store
        self._named = named
        self._settings = ready_made

    async def create(self, tenant: str, request: agent_service_pb2.CreateAgentRequest) -> agent_pb2.Agent:
        """Makes an agent, after its configuration and its model were checked."""
        check_config(request.config)
        await self._named.check(request.config)
        now = clock.now()
        agent = agent_pb2.Agent(
            agent_id=new_id("agent"),
            name=request.name,
            description=request.description,
            config=request.config,
            version=1,
            etag=_etag(),
            metadata=request.metadata,
            create_time=now,
            update_time=now,
        )

        async def unit(tx: Transaction) -> agent_pb2.Agent:
            earlier = await idempotency.earlier(tx, tenant, request.request_id, request)
            if earlier is not None:
                found = await agents.get(tx, tenant, earlier, 1)
                if found is None:
                    raise NotFound("agent", earlier)
                return found
            await agents.insert(tx, tenant, agent)
            await idempotency.remember(tx, tenant, request.request_id, request, agent.agent_id)
            return agent

        return await self._store.write(unit)

    async def get(self, tenant: str, agent_id: str, version: int = 0) -> agent_pb2.Agent:
        """Returns an agent in a version; 0 is the newest.

        Raises:
            NotFound: there is no such agent, or no such version.
        """

        async def unit(tx: Transaction) -> tuple[agent_pb2.Agent | None, list[str]]:
            found = await agents.get(tx, tenant, agent_id, version)
            return found, [] if found is not None else await agents.names(tx, tenant)

        found, available = await self._store.read(unit)
        if found is not None:
            return found
        if agent_id == AGENT_ID and version in {0, 1}:
            return await self._ready_made()
        name = f"{agent_id} version {version}" if version else agent_id
        raise NotFound("agent", name, available=[AGENT_ID, *available])

    async def page(self, tenant: str, size: int, token: str) -> tuple[list[agent_pb2.Agent], str]:
        """Returns a page of the agents and the token of the next; the ready-made one comes first."""
        limit = page_size(size)
        created, agent_id = decode_position(token, (-1, ""))

        async def unit(tx: Transaction) -> tuple[list[agent_pb2.Agent], bool]:
            found = await agents.page(tx, tenant, (int(created), str(agent_id)), limit + 1)
            return found, await agents.get(tx, tenant, AGENT_ID) is not None

        found, changed = await self._store.read(unit)
        if not token and not changed:
            found.insert(0, await self._ready_made(tolerant=True))
        if len(found) <= limit:
            return found, ""
        last = found[limit - 1]
        return found[:limit], encode_position(clock.microseconds(last.create_time), last.agent_id)

    async def versions(self, tenant: str, agent_id: str, size: int, token: str) -> tuple[list[agent_pb2.Agent], str]:
        """Returns a page of the versions of an agent, newest first."""
        limit = page_size(size)
        (before,) = decode_position(token, (2**62,))
        newest = await self.get(tenant, agent_id)

        async def unit(tx: Transaction) -> list[agent_pb2.Agent]:
            return await agents.versions(tx, tenant, agent_id, int(before), limit + 1)

        found = await self._store.read(unit) or [newest]
        if len(found) <= limit:
            return found, ""
        return found[:limit], encode_position(found[limit - 1].version)

    async def update(self, tenant: str, request: agent_service_pb2.UpdateAgentRequest) -> agent_pb2.Agent:
        """Changes an agent; a changed configuration is a new version.

        Raises:
            EtagMismatch: somebody else changed it in between.
        """
        current = await self.get(tenant, request.agent.agent_id)
        changed = _changed(current, request)
        check_config(changed.config, "agent.config")
        if changed.config != current.config:
            await self._named.check(changed.config, "agent.config")

        async def unit(tx: Transaction) -> agent_pb2.Agent:
            stored = await agents.get(tx, tenant, current.agent_id)
            if stored is None and current.agent_id != AGENT_ID:
                raise NotFound("agent", current.agent_id)
            if (request.agent.etag and request.agent.etag != (stored or current).etag) or (
                stored is not None and stored.etag != current.etag
            ):
                raise EtagMismatch("agent", current.agent_id, etag=(stored or current).etag)
            if stored is None:
                await agents.insert(tx, tenant, current)
            new_version = changed.config != current.config
            changed.version = current.version + 1 if new_version else current.version
            changed.etag = _etag()
            changed.update_time.CopyFrom(clock.now())
            await agents.replace(tx, tenant, changed, new_version=new_version)
            return changed

        return await self._store.write(unit)

    async def delete(self, tenant: str, agent_id: str, etag: str, *, force: bool, owned: Sessions) -> None:
        """Deletes an agent; with `force` its sessions too.

        Raises:
            ResourceInUse: it has sessions, or it is the ready-made one.
            EtagMismatch: somebody else changed it in between.
        """
        if agent_id == AGENT_ID:
            raise ResourceInUse("agent", agent_id, used_by="the mesh: it is the ready-made agent")
        agent = await self.get(tenant, agent_id)
        if etag and etag != agent.etag:
            raise EtagMismatch("agent", agent_id, etag=agent.etag)
        if force:
            for session_id in await self._sessions_of(tenant, agent_id):
                await owned.delete(tenant, session_id, force=True)

        async def unit(tx: Transaction) -> None:
            used_by = await sessions.of_agent(tx, tenant, agent_id)
            if used_by:
                raise ResourceInUse("agent", agent_id, used_by=f"{len(used_by)} sessions, as {used_by[0]}")
            await agents.delete(tx, tenant, agent_id)

        await self._store.write(unit)

    async def _sessions_of(self, tenant: str, agent_id: str) -> list[str]:
        async def unit(tx: Transaction) -> list[str]:
            return await sessions.of_agent(tx, tenant, agent_id)

        return await self._store.read(unit)

    async def _ready_made(self, *, tolerant: bool = False) -> agent_pb2.Agent:
        """The assistant; `tolerant` shows it without a model while the inference service is away."""
        if self._settings.model:
            return assistant(self._settings, self._settings.model)
        try:
            return assistant(self._settings, await self._named.default_model())
        except TurnwireError:
            if tolerant:
                return assistant(self._settings, "")
            raise


def _etag() -> str:
    return os.urandom(8).hex()


def _changed(current: agent_pb2.Agent, request: agent_service_pb2.UpdateAgentRequest) -> agent_pb2.Agent:
    changed = agent_pb2.Agent()
    changed.CopyFrom(current)
    for path in request.update_mask.paths or _FIELDS:
        head, _, tail = path.partition(".")
        if tail:
            chosen = agent_pb2.AgentConfig()
            chosen.CopyFrom(request.agent.config)
            for descriptor, _value in request.agent.config.ListFields():
                if descriptor.name != tail:
                    chosen.ClearField(descriptor.name)  # pyright: ignore[reportArgumentType] - from the descriptor
            changed.config.ClearField(tail)  # pyright: ignore[reportArgumentType] - checked against the descriptor
            changed.config.MergeFrom(chosen)
            continue
        match head:
            case "name":
                changed.name = request.agent.name
            case "description":
                changed.description = request.agent.description
            case "metadata":
                changed.metadata.clear()
                changed.metadata.update(request.agent.metadata)
            case "config":
                changed.config.CopyFrom(request.agent.config)
            case _:
                raise InvalidArgument.one("update_mask", f"{path!r} is no field that can be changed")
    return changed
