"""The shields that can be run: those that come with their providers, and those that were registered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.errors import AlreadyExists, Ambiguous, IdempotencyConflict, NotFound, ResourceInUse
from turnwire.safety.store import shields as stored
from turnwire.safety.v1 import shield_pb2, shield_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.runtime.storage import Store, Transaction
    from turnwire.safety.shields.port import Provider


@dataclass(frozen=True, slots=True)
class Found:
    """A shield, and who runs it; nobody when its provider is no longer configured."""

    shield: shield_pb2.Shield
    provider: Provider | None


class Shields:
    """Resolves the names of shields; registrations belong to a tenant and outlive a restart."""

    def __init__(self, store: Store, providers: Sequence[Provider]) -> None:
        """Knows these providers, in the order of the configuration."""
        self._store = store
        self._providers = {provider.provider_id: provider for provider in providers}

    async def resolve(self, tenant: str, names: Sequence[str]) -> list[Found]:
        """Returns the shields of names, each `shield_id` or `provider_id/shield_id`, and their providers.

        Raises:
            NotFound: there is none of that name; the error names what there is.
            Ambiguous: several providers have one of that id.
        """
        known = await self.all(tenant)
        return [self._found(name, known) for name in names]

    async def all(self, tenant: str) -> list[shield_pb2.Shield]:
        """Returns all shields, by id."""

        async def unit(tx: Transaction) -> list[shield_pb2.Shield]:
            return await stored.of_tenant(tx, tenant)

        registered = await self._store.read(unit)
        brought = [shield for provider in self._providers.values() for shield in provider.shields()]
        return sorted([*brought, *registered], key=lambda shield: (shield.shield_id, shield.provider_id))

    async def register(self, tenant: str, request: shield_service_pb2.RegisterShieldRequest) -> shield_pb2.Shield:
        """Registers a shield of a provider.

        Raises:
            NotFound: there is no such provider.
            NotServed: the provider has nothing of that name.
            InvalidArgument: the provider refuses the configuration.
            AlreadyExists: the id is taken at that provider.
        """
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()

        async def repeated(tx: Transaction) -> shield_pb2.Shield | None:
            earlier = await stored.by_request(tx, tenant, request.request_id) if request.request_id else None
            if earlier is not None and earlier[0] != digest:
                raise IdempotencyConflict("request_id", request.request_id)
            return earlier[1] if earlier is not None else None

        # A repeat has its answer also when the provider would refuse it now.
        first = await self._store.read(repeated)
        if first is not None:
            return first
        provider = self._provider(request.provider_id)
        shield = shield_pb2.Shield(
            shield_id=request.shield_id,
            provider_id=provider.provider_id,
            provider_shield_id=request.provider_shield_id or request.shield_id,
            config_json=request.config_json,
            metadata=request.metadata,
            create_time=_now(),
        )
        if any(each.shield_id == shield.shield_id for each in provider.shields()):
            raise AlreadyExists("shield", address(shield))
        await provider.accept(shield)

        async def unit(tx: Transaction) -> shield_pb2.Shield:
            earlier = await repeated(tx)
            if earlier is not None:
                return earlier
            if await stored.exists(tx, tenant, shield.provider_id, shield.shield_id):
                raise AlreadyExists("shield", address(shield))
            await stored.insert(tx, tenant, shield, request.request_id, digest)
            return shield

        return await self._store.write(unit)

    async def unregister(self, tenant: str, name: str) -> None:
        """Takes a registration back, also one whose provider has gone.

        Raises:
            NotFound: there is none.
            Ambiguous: several providers have one of that id.
            ResourceInUse: the shield came with its provider.
        """

        async def unit(tx: Transaction) -> bool:
            found = _named(name, await stored.of_tenant(tx, tenant))
            if len(found) > 1:
                raise Ambiguous(name, available=[address(each) for each in found])
            for each in found:
                await stored.delete(tx, tenant, each.provider_id, each.shield_id)
            return bool(found)

        if not await self._store.write(unit):
            (found,) = await self.resolve(tenant, [name])
            raise ResourceInUse("shield", name, used_by=f"its provider {found.shield.provider_id}, which brings it")

    def _found(self, name: str, known: Sequence[shield_pb2.Shield]) -> Found:
        found = _named(name, known)
        if not found:
            raise NotFound("shield", name, available=_names(known))
        if len(found) > 1:
            raise Ambiguous(name, available=[address(each) for each in found])
        return Found(found[0], self._providers.get(found[0].provider_id))

    def _provider(self, provider_id: str) -> Provider:
        if not provider_id and len(self._providers) == 1:
            return next(iter(self._providers.values()))
        provider = self._providers.get(provider_id)
        if provider is None:
            raise NotFound("provider", provider_id, available=list(self._providers))
        return provider


def address(shield: shield_pb2.Shield) -> str:
    """Returns the name that is beyond doubt: `provider_id/shield_id`."""
    return f"{shield.provider_id}/{shield.shield_id}"


def _named(name: str, shields: Sequence[shield_pb2.Shield]) -> list[shield_pb2.Shield]:
    # A full address is beyond doubt, also where another shield's own id looks like it.
    return [each for each in shields if name == address(each)] or [each for each in shields if name == each.shield_id]


def _names(shields: Sequence[shield_pb2.Shield]) -> list[str]:
    ids = [shield.shield_id for shield in shields]
    return [shield.shield_id if ids.count(shield.shield_id) == 1 else address(shield) for shield in shields]


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
