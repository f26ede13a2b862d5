"""Calls of the services, on behalf of whoever asks over HTTP."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from turnwire import __version__
from turnwire.errors import Unauthenticated
from turnwire.ids import new_id
from turnwire.runtime.channels import Metadata, PreparedChannel, channel_options
from turnwire.runtime.directory import open_channel
from turnwire.runtime.trace_context import next_traceparent, parsed_traceparent

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc
    from starlette.datastructures import Headers

    from turnwire.runtime.settings import Settings
    from turnwire.runtime.traces import Tracer
    from turnwire_gateway.methods import Method

_TOKEN_SERVICES = frozenset({"agent", "inference"})
"""Their streams are of small pieces: a reader that stops is to hold up its writer soon."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What of an HTTP request goes along with its calls: the credential, the trace, the id. Never a tenant."""

    metadata: Metadata
    request_id: str

    @classmethod
    def of(cls, headers: Headers) -> Caller:
        """Returns the caller of a request.

        Raises:
            Unauthenticated: the credential cannot be one.
        """
        sent: list[tuple[str, str]] = []
        authorization = headers.get("authorization")
        if authorization is not None:
            if not _printable(authorization):
                raise Unauthenticated("The authorization header holds characters that no credential of ours has.")
            sent.append(("authorization", authorization))
        traceparent = headers.get("traceparent", "")
        if parsed_traceparent(traceparent) is None:
            traceparent = next_traceparent("")
        sent.append(("traceparent", traceparent))
        tracestate = headers.get("tracestate", "")
        if tracestate and len(tracestate) <= 512 and _printable(tracestate):
            sent.append(("tracestate", tracestate))
        named = headers.get("turnwire-request-id", "")
        request_id = named if 0 < len(named) <= 100 and _printable(named) else new_id("req")
        sent.append(("turnwire-request-id", request_id))
        return cls(tuple(sent), request_id)

    def anonymous(self) -> Caller:
        """Returns the caller without a credential."""
        return Caller(tuple((key, value) for key, value in self.metadata if key != "authorization"), self.request_id)


class Upstreams:
    """The channels to the services; open as long as the gateway is."""

    def __init__(
        self, settings: Settings, *, environ: Mapping[str, str] = os.environ, tracer: Tracer | None = None
    ) -> None:
        """`TURNWIRE_<SERVICE>_ADDRESS` goes before the settings; nothing connects before it is used."""
        self._settings = settings
        self._environ = environ
        self._tracer = tracer
        self._channels: dict[tuple[str, bool], PreparedChannel] = {}
        self._callables: dict[str, Any] = {}

    def address(self, service: str) -> str:
        """Returns where a service is."""
        return self._environ.get(f"TURNWIRE_{service.upper()}_ADDRESS") or self._settings.address(service)

    def channel(self, service: str, *, streams: bool = False) -> grpc.aio.Channel:
        """Returns the channel to a service, for stubs; `streams`: the one for streams of tokens."""
        small_windows = streams and service in _TOKEN_SERVICES
        key = (service, small_windows)
        channel = self._channels.get(key)
        if channel is None:
            options = channel_options(small_windows=small_windows)
            plain = open_channel(self.address(service), self._settings.tls, options)
            channel = self._channels[key] = PreparedChannel(plain, _prepared, self._tracer)
        # The stubs only use the four methods that make calls.
        return cast("grpc.aio.Channel", channel)

    def call(self, method: Method, request: bytes, caller: Caller, seconds: float | None) -> Any:
        """Begins a call with a serialised request; what it answers is serialised too."""
        callable_ = self._callables.get(method.name)
        if callable_ is None:
            channel = self.channel(method.service, streams=method.streams_out)
            make = channel.unary_stream if method.streams_out else channel.unary_unary
            callable_ = self._callables[method.name] = make(f"/{method.name}")
        return callable_(request, timeout=seconds, metadata=caller.metadata)

    async def close(self) -> None:
        """Closes all channels and cancels their calls."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        self._callables.clear()


def _prepared(timeout: float | None, metadata: Metadata | None) -> tuple[float | None, Metadata]:
    return timeout, (*(metadata or ()), ("turnwire-client", f"turnwire-gateway/{__version__}"))


def _printable(value: str) -> bool:
    return value.isascii() and value.isprintable()
