"""`turnwire.common.v1.InspectService`: what a process is, and what this version serves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from turnwire import __version__
from turnwire.common.v1 import inspect_service_pb2 as messages
from turnwire.common.v1.inspect_service_pb2_grpc import InspectServiceServicer
from turnwire.runtime.unimplemented import MARK

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc

    from turnwire.runtime.context import ServiceContext

    Context = grpc.aio.ServicerContext[Any, Any]


class InspectServicer(InspectServiceServicer):
    """Describes the process that hosts it."""

    def __init__(self, contexts: list[ServiceContext], handlers: Mapping[str, Any]) -> None:
        """`handlers` are the method handlers of the server, by full name; they are read when somebody asks."""
        self._contexts = contexts
        self._handlers = handlers
        self._start_time = Timestamp()
        self._start_time.FromNanoseconds(time.time_ns())

    async def GetServerInfo(
        self, request: messages.GetServerInfoRequest, context: Context
    ) -> messages.GetServerInfoResponse:
        """Returns version, identity and age."""
        return messages.GetServerInfoResponse(
            services=[each.name for each in self._contexts],
            version=__version__,
            instance_id=self._contexts[0].instance_id,
            start_time=self._start_time,
        )

    async def ListMethods(self, request: messages.ListMethodsRequest, context: Context) -> messages.ListMethodsResponse:
        """Returns the RPCs, and whether this version serves them."""
        methods = [
            messages.Method(
                name=name,
                implemented=not hasattr(_behaviour(handler), MARK),
                server_streaming=handler.response_streaming,
                client_streaming=handler.request_streaming,
            )
            for name, handler in sorted(self._handlers.items())
        ]
        return messages.ListMethodsResponse(methods=methods)

    async def ListProviders(
        self, request: messages.ListProvidersRequest, context: Context
    ) -> messages.ListProvidersResponse:
        """Returns the configured providers and their state."""
        response = messages.ListProvidersResponse()
        for each in self._contexts:
            if request.service in {"", each.name}:
                for describe in each.describe_providers:
                    response.providers.extend(await describe())
        return response


def _behaviour(handler: Any) -> Any:
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        behaviour = getattr(handler, kind)
        if behaviour is not None:
            return behaviour
    return None
