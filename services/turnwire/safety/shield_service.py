"""The RPCs of `turnwire.safety.v1.ShieldService`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.identity import current
from turnwire.runtime.paging import decode_position, encode_position, page_size
from turnwire.runtime.validation import Violations
from turnwire.safety import validation
from turnwire.safety.v1 import shield_service_pb2 as messages
from turnwire.safety.v1.shield_service_pb2_grpc import ShieldServiceServicer

if TYPE_CHECKING:
    import grpc

    from turnwire.safety.registry import Shields

    Context = grpc.aio.ServicerContext[Any, Any]


class ShieldServicer(ShieldServiceServicer):
    """Serves the registry of shields."""

    def __init__(self, shields: Shields) -> None:
        """Works on `shields`."""
        self._shields = shields

    async def ListShields(self, request: messages.ListShieldsRequest, context: Context) -> messages.ListShieldsResponse:
        """Lists the shields, by id."""
        limit = page_size(request.page_size)
        last = decode_position(request.page_token, ("", ""))
        shields = [
            shield
            for shield in await self._shields.all(current().tenant)
            if (shield.shield_id, shield.provider_id) > last
        ]
        page = shields[:limit]
        token = encode_position(page[-1].shield_id, page[-1].provider_id) if len(shields) > limit else ""
        return messages.ListShieldsResponse(shields=page, next_page_token=token)

    async def GetShield(self, request: messages.GetShieldRequest, context: Context) -> messages.GetShieldResponse:
        """Gets one shield."""
        _require(request.shield_id)
        (found,) = await self._shields.resolve(current().tenant, [request.shield_id])
        return messages.GetShieldResponse(shield=found.shield)

    async def RegisterShield(
        self, request: messages.RegisterShieldRequest, context: Context
    ) -> messages.RegisterShieldResponse:
        """Registers a shield of a provider."""
        validation.check_register(request)
        return messages.RegisterShieldResponse(shield=await self._shields.register(current().tenant, request))

    async def UnregisterShield(
        self, request: messages.UnregisterShieldRequest, context: Context
    ) -> messages.UnregisterShieldResponse:
        """Takes a registration back."""
        _require(request.shield_id)
        await self._shields.unregister(current().tenant, request.shield_id)
        return messages.UnregisterShieldResponse()


def _require(name: str) -> None:
    violations = Violations()
    validation.check_shield(violations, "shield_id", name)
    violations.raise_if_any()
