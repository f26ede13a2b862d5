"""The RPCs of `turnwire.safety.v1.SafetyService`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.runtime.unimplemented import unimplemented
from turnwire.safety import validation
from turnwire.safety.redaction import redacted
from turnwire.safety.running import run_all
from turnwire.safety.shields.port import Content
from turnwire.safety.v1 import safety_service_pb2
from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.safety.registry import Shields

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(safety_service_pb2.DESCRIPTOR.services_by_name["SafetyService"], "RunShields")


class SafetyServicer(SafetyServiceServicer):
    """Judges contents with the shields of all configured providers."""

    def __init__(self, shields: Shields) -> None:
        """Finds shields by name in `shields`."""
        self._shields = shields

    async def RunShields(
        self, request: safety_service_pb2.RunShieldsRequest, context: Context
    ) -> safety_service_pb2.RunShieldsResponse:
        """Judges messages with several shields at once."""
        validation.check_run(request)
        found = await self._shields.resolve(current().tenant, request.shield_ids)
        verdicts = await run_all(found, Content(request.messages, request.point))
        redactions = [each for verdict in verdicts for each in verdict.redactions]
        return safety_service_pb2.RunShieldsResponse(verdicts=verdicts, redacted=redacted(request.messages, redactions))

    @unimplemented("SafetyService/ScreenStream", "Until then `RunShields` judges the whole text.")
    def ScreenStream(
        self, request_iterator: AsyncIterator[safety_service_pb2.ScreenStreamRequest], context: Context
    ) -> AsyncIterator[safety_service_pb2.ScreenStreamResponse]:
        """Is not served yet."""
        raise NotImplementedError
