"""Shields, by way of a `Client`: what is in `client.shields`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.client.answers import answered
from turnwire.common.v1 import message_pb2, shield_pb2
from turnwire.safety.v1 import safety_service_pb2, shield_service_pb2
from turnwire.safety.v1 import shield_pb2 as registry_pb2
from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceStub
from turnwire.safety.v1.shield_service_pb2_grpc import ShieldServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RUN_SECONDS = 60.0
"""A model may be among the judges."""


class Shields:
    """The registry of shields, and their verdicts, for one caller."""

    def __init__(self, channel: Callable[[str], Any], timeout: float) -> None:
        """Use `client.shields`."""
        self.shield_stub = ShieldServiceStub(channel("safety"))
        """The stub of ShieldService, for what has no method here."""
        self.safety_stub = SafetyServiceStub(channel("safety"))
        """The stub of SafetyService."""
        self._timeout = timeout

    async def list(self, **fields: Any) -> shield_service_pb2.ListShieldsResponse:
        """Returns a page of shields; fields are those of ListShieldsRequest."""
        request = shield_service_pb2.ListShieldsRequest(**fields)
        return await answered(self.shield_stub.ListShields(request, timeout=self._timeout), service="safety")

    async def get(self, shield_id: str) -> registry_pb2.Shield:
        """Returns a shield."""
        request = shield_service_pb2.GetShieldRequest(shield_id=shield_id)
        return (await answered(self.shield_stub.GetShield(request, timeout=self._timeout), service="safety")).shield

    async def register(self, shield_id: str, **fields: Any) -> registry_pb2.Shield:
        """Registers a shield of a provider; further fields are those of RegisterShieldRequest."""
        request = shield_service_pb2.RegisterShieldRequest(shield_id=shield_id, **fields)
        return (
            await answered(self.shield_stub.RegisterShield(request, timeout=self._timeout), service="safety")
        ).shield

    async def unregister(self, shield_id: str) -> None:
        """Takes a registration back."""
        request = shield_service_pb2.UnregisterShieldRequest(shield_id=shield_id)
        await answered(self.shield_stub.UnregisterShield(request, timeout=self._timeout), service="safety")

    async def run(
        self,
        shield_ids: Sequence[str],
        messages: str | Sequence[message_pb2.Message],
        *,
        point: shield_pb2.ShieldPoint.ValueType = shield_pb2.SHIELD_POINT_INPUT,
    ) -> safety_service_pb2.RunShieldsResponse:
        """Returns what shields say of messages, or of a text that a user said."""
        if isinstance(messages, str):
            part = message_pb2.ContentPart(text=messages, provenance=message_pb2.PROVENANCE_USER)
            messages = [message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])]
        request = safety_service_pb2.RunShieldsRequest(shield_ids=shield_ids, point=point, messages=messages)
        return await answered(
            self.safety_stub.RunShields(request, timeout=max(self._timeout, _RUN_SECONDS)), service="safety"
        )
