"""The tools that can be executed: those that come with their providers, and those that were registered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.errors import AlreadyExists, Ambiguous, IdempotencyConflict, NotFound, ResourceInUse
from turnwire.tool_executor.store import tools as stored
from turnwire.tool_executor.v1 import tool_pb2, tool_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.runtime.storage import Store, Transaction
    from turnwire.tool_executor.tools.port import Provider


_ALIASES = {"brave_search": "web_search"}
"""Names that models of the Llama family were taught for tools of ours."""


@dataclass(frozen=True, slots=True)
class Found:
    """A tool, and who executes it; nobody when its provider is no longer configured."""

    tool: tool_pb2.Tool
    provider: Provider | None


class Tools:
    """Resolves the names of tools; registrations belong to a tenant and outlive a restart."""

    def __init__(self, store: Store, providers: Sequence[Provider]) -> None:
        """Knows these providers, in the order of the configuration."""
        self._store = store
        self._providers = {provider.provider_id: provider for provider in providers}

    async def resolve(self, tenant: str, name: str) -> Found:
        """Returns the tool of a name, `tool_id` or `provider_id/tool_id`, and its provider.

        Raises:
            NotFound: there is none of that name; the error names what there is.
            Ambiguous: several providers have one of that id.
        """
        known = await self.all(tenant)
        found = _named(name, known) or _named(_ALIASES.get(name, ""), known)
        if not found:
            raise NotFound("tool", name, available=_names(known))
        if len(found) > 1:
            raise Ambiguous(name, available=[address(each) for each in found])
        return Found(found[0], self._providers.get(found[0].provider_id))

    async def all(self, tenant: str) -> list[tool_pb2.Tool]:
        """Returns all tools, by id."""

        async def unit(tx: Transaction) -> list[tool_pb2.Tool]:
            return await stored.of_tenant(tx, tenant)

        registered = await self._store.read(unit)
        brought = [tool for provider in self._providers.values() for tool in provider.tools()]
        return sorted([*brought, *registered], key=lambda tool: (tool.tool_id, tool.provider_id))

    async def register(self, tenant: str, request: tool_service_pb2.RegisterToolRequest) -> tool_pb2.Tool:
        """Registers a tool of a provider.

        Raises:
            NotFound: there is no such provider.
            InvalidArgument: the provider refuses the configuration or the description.
            AlreadyExists: the id is taken at that provider.
        """
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()

        async def repeated(tx: Transaction) -> tool_pb2.Tool | None:
            earlier = await stored.by_request(tx, tenant, request.request_id) if request.request_id else None
            if earlier is not None and earlier[0] != digest:
                raise IdempotencyConflict("request_id", request.request_id)
            return earlier[1] if earlier is not None else None

        # A repeat has its answer also when the provider would refuse it now.
        first = await self._store.read(repeated)
        if first is not None:
            return first
        provider = self._provider(request.provider_id)
        tool = tool_pb2.Tool(
            tool_id=request.tool_id,
            provider_id=provider.provider_id,
            definition=request.definition,
            idempotent=request.idempotent,
            config_json=request.config_json,
            metadata=request.metadata,
            create_time=_now(),
        )
        if any(each.tool_id == tool.tool_id for each in provider.tools()):
            raise AlreadyExists("tool", address(tool))
        await provider.accept(tool)

        async def unit(tx: Transaction) -> tool_pb2.Tool:
            earlier = await repeated(tx)
            if earlier is not None:
                return earlier
            if await stored.exists(tx, tenant, tool.provider_id, tool.tool_id):
                raise AlreadyExists("tool", address(tool))
            await stored.insert(tx, tenant, tool, request.request_id, digest)
            return tool

        return await self._store.write(unit)

    async def unregister(self, tenant: str, name: str) -> None:
        """Takes a registration back, also one whose provider has gone.

        Raises:
            NotFound: there is none.
            Ambiguous: several providers have one of that id.
            ResourceInUse: the tool came with its provider.
        """

        async def unit(tx: Transaction) -> bool:
            found = _named(name, await stored.of_tenant(tx, tenant))
            if len(found) > 1:
                raise Ambiguous(name, available=[address(each) for each in found])
            for each in found:
                await stored.delete(tx, tenant, each.provider_id, each.tool_id)
            return bool(found)

        if not await self._store.write(unit):
            found = await self.resolve(tenant, name)
            raise ResourceInUse("tool", name, used_by=f"its provider {found.tool.provider_id}, which brings it")

    def _provider(self, provider_id: str) -> Provider:
        if not provider_id and len(self._providers) == 1:
            return next(iter(self._providers.values()))
        provider = self._providers.get(provider_id)
        if provider is None:
            raise NotFound("provider", provider_id, available=list(self._providers))
        return provider


def address(tool: tool_pb2.Tool) -> str:
    """Returns the name that is beyond doubt: `provider_id/tool_id`."""
    return f"{tool.provider_id}/{tool.tool_id}"


def _named(name: str, tools: Sequence[tool_pb2.Tool]) -> list[tool_pb2.Tool]:
    # A full address is beyond doubt, also where another tool's own id looks like it.
    return [each for each in tools if name == address(each)] or [each for each in tools if name == each.tool_id]


def _names(tools: Sequence[tool_pb2.Tool]) -> list[str]:
    ids = [tool.tool_id for tool in tools]
    return [tool.tool_id if ids.count(tool.tool_id) == 1 else address(tool) for tool in tools]


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
