"""The RPCs of the safety service.

Screening of contents comes with a later version: every method answers UNIMPLEMENTED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.unimplemented import unimplemented
from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceServicer
from turnwire.safety.v1.shield_service_pb2_grpc import ShieldServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.safety.v1 import safety_service_pb2, shield_service_pb2

    Context = grpc.aio.ServicerContext[Any, Any]

_INSTEAD = "Agents with shields are refused until then."


class SafetyServicer(SafetyServiceServicer):
    """Answers that this version does not serve `SafetyService`."""

    @unimplemented("SafetyService/RunShields", _INSTEAD)
    async def RunShields(
        self, request: safety_service_pb2.RunShieldsRequest, context: Context
    ) -> safety_service_pb2.RunShieldsResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("SafetyService/ScreenStream", _INSTEAD)
    def ScreenStream(
        self, request_iterator: AsyncIterator[safety_service_pb2.ScreenStreamRequest], context: Context
    ) -> AsyncIterator[safety_service_pb2.ScreenStreamResponse]:
        """Is not served yet."""
        raise NotImplementedError


class ShieldServicer(ShieldServiceServicer):
    """Answers that this version does not serve `ShieldService`."""

    @unimplemented("ShieldService/ListShields", _INSTEAD)
    async def ListShields(
        self, request: shield_service_pb2.ListShieldsRequest, context: Context
    ) -> shield_service_pb2.ListShieldsResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ShieldService/GetShield", _INSTEAD)
    async def GetShield(
        self, request: shield_service_pb2.GetShieldRequest, context: Context
    ) -> shield_service_pb2.GetShieldResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ShieldService/RegisterShield", _INSTEAD)
    async def RegisterShield(
        self, request: shield_service_pb2.RegisterShieldRequest, context: Context
    ) -> shield_service_pb2.RegisterShieldResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("ShieldService/UnregisterShield", _INSTEAD)
    async def UnregisterShield(
        self, request: shield_service_pb2.UnregisterShieldRequest, context: Context
    ) -> shield_service_pb2.UnregisterShieldResponse:
        """Is not served yet."""
        raise NotImplementedError
