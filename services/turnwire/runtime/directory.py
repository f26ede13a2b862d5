"""Where the services are, and the channels to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc

from turnwire import __version__
from turnwire.errors import DeadlineExceeded
from turnwire.runtime.channels import Metadata, PreparedChannel, channel_options
from turnwire.runtime.identity import current, mesh_token, remaining, request_id, traceparent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnwire.runtime.settings import Settings, TlsSettings
    from turnwire.runtime.traces import Tracer

_MARGIN_SECONDS = 0.05
"""So much earlier an inner call ends than the call it serves: its error still reaches the caller."""


class Directory:
    """Maps services to addresses and keeps one channel to each, for as long as it is open."""

    def __init__(
        self,
        settings: Settings,
        *,
        own_service: str,
        mesh_secret: str | None,
        environ: Mapping[str, str] = os.environ,
        tracer: Tracer | None = None,
    ) -> None:
        """Calls as the service `own_service`; `TURNWIRE_<SERVICE>_ADDRESS` goes before the settings."""
        self._tracer = tracer
        self._settings = settings
        self._own_service = own_service
        self._mesh_secret = mesh_secret
        self._environ = environ
        self._channels: dict[tuple[str, bool], PreparedChannel] = {}

    def address(self, service: str) -> str:
        """Returns where a service is."""
        return self._environ.get(f"TURNWIRE_{service.upper()}_ADDRESS") or self._settings.address(service)

    def channel(self, service: str) -> grpc.aio.Channel:
        """Returns the channel to a service; it is shared and connects when it is used."""
        return self._opened(service, small_windows=False)

    def token_channel(self, service: str) -> grpc.aio.Channel:
        """Returns the channel for streams of tokens: a stopped reader soon holds up its writer."""
        return self._opened(service, small_windows=True)

    def peer_channel(self, service: str, address: str) -> grpc.aio.Channel:
        """Returns the channel to one replica of a service, whose certificate is that of the service."""
        return self._opened(service, small_windows=False, address=address)

    async def close_peer(self, address: str) -> None:
        """Closes the channel to one replica of a service, if it is open."""
        channel = self._channels.pop((address, False), None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        """Closes all channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _opened(self, service: str, *, small_windows: bool, address: str = "") -> grpc.aio.Channel:
        key = (address or service, small_windows)
        channel = self._channels.get(key)
        if channel is None:
            options = channel_options(small_windows=small_windows)
            if address:
                options.append(("grpc.ssl_target_name_override", _host(self.address(service))))
            plain = open_channel(address or self.address(service), self._settings.tls, options)
            channel = self._channels[key] = PreparedChannel(
                plain, lambda timeout, metadata: self._prepared(service, timeout, metadata), self._tracer
            )
        # The stubs only use the four methods that make calls.
        return cast("grpc.aio.Channel", channel)

    def _prepared(
        self, service: str, timeout: float | None, metadata: Metadata | None
    ) -> tuple[float | None, Metadata]:
        left = remaining()
        if left is not None:
            if left <= _MARGIN_SECONDS:
                raise DeadlineExceeded(service, detail="no time was left for it")
            timeout = min(timeout, left - _MARGIN_SECONDS) if timeout is not None else left - _MARGIN_SECONDS
        sent = list(metadata or ())
        keys = {key for key, _ in sent}
        if self._mesh_secret is not None:
            sent.append(("authorization", f"Bearer {mesh_token(self._mesh_secret, self._own_service)}"))
        sent.append(("turnwire-tenant", current().tenant))
        sent.append(("turnwire-client", f"turnwire-{self._own_service}/{__version__}"))
        if request_id():
            sent.append(("turnwire-request-id", request_id()))
        if traceparent() and "traceparent" not in keys:
            sent.append(("traceparent", traceparent()))
        return timeout, tuple(sent)


def _host(address: str) -> str:
    """Returns the name in an address as `dns:///agent:50051`."""
    return address.rpartition("/")[2].rpartition(":")[0].strip("[]")


def open_channel(address: str, tls: TlsSettings, options: list[tuple[str, object]]) -> grpc.aio.Channel:
    """Returns a channel, with TLS where it is configured."""
    if tls.certificate is None and tls.ca is None:
        return grpc.aio.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca),
        private_key=_read(tls.key) if tls.client_ca is not None else None,
        certificate_chain=_read(tls.certificate) if tls.client_ca is not None else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=options)


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None else None
