"""The gRPC server of one service, with its health and its metrics on ports of their own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from turnwire.runtime.authentication import Authenticator
from turnwire.runtime.extras import imported
from turnwire.runtime.interceptor import CallInterceptor
from turnwire.runtime.settings.models import HEALTH_OFFSET, METRICS_OFFSET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnwire.runtime.metrics import Metrics
    from turnwire.runtime.settings import Settings
    from turnwire.runtime.traces import Tracer


class PortTaken(Exception):
    """A port is in use."""

    def __init__(self, service: str, port: int, detail: str) -> None:
        """Names the port and what to do."""
        super().__init__(
            f"{service}: port {port} cannot be bound ({detail}). Stop what uses it, or move all ports with"
            " `--port-offset 1000`."
        )
        self.port = port


class ExposedWithoutAccess(Exception):
    """A server would listen beyond loopback and let everybody in."""

    def __init__(self, host: str) -> None:
        """Names the address."""
        super().__init__(
            f"listen.host is {host}, which others can reach, and no `access.api_keys` are configured: add a key, or"
            " listen on 127.0.0.1."
        )


def server_options(settings: Settings) -> list[tuple[str, Any]]:
    """Returns the options of a server, each for a trap that was measured."""
    # gRPC's own limit lies above ours, so that a caller gets our error with its details.
    received = settings.limits.message_bytes * 2
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", 10_000),
        ("grpc.server.max_pending_requests", 10_000),
        ("grpc.server.max_pending_requests_hard_limit", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A probe of the bandwidth that is out holds the keepalive's ping back, and has a minute of its own.
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_ms", 300_000),
        ("grpc.max_connection_age_grace_ms", 3_600_000),
        ("grpc.max_receive_message_length", received),
        ("grpc.max_send_message_length", 64 * 1024 * 1024),
        ("grpc.http2.lookahead_bytes", 65_536),
    ]


class ServiceServer:
    """Serves one service: its RPCs, its health, its metrics."""

    def __init__(self, service: str, settings: Settings, mesh_secret: str | None, tracer: Tracer | None = None) -> None:
        """Binds nothing yet.

        Raises:
            ExposedWithoutAccess: others could reach it, and there is no key.
            ExtraMissing: the package for metrics is not installed.
        """
        self.service = service
        self._settings = settings
        authenticator = Authenticator(settings.access, mesh_secret)
        if authenticator.is_open and not _is_loopback(settings.listen.host):
            raise ExposedWithoutAccess(settings.listen.host)
        self.metrics = _metrics(service) if settings.telemetry.metrics else None
        interceptor = CallInterceptor(
            service,
            authenticator,
            self.metrics,
            message_bytes=settings.limits.message_bytes,
            concurrent_calls=settings.limits.concurrent_calls,
            tracer=tracer,
        )
        options = server_options(settings)
        self.grpc = grpc.aio.server(interceptors=(interceptor,), options=options)
        self._health_server = grpc.aio.server(options=options)
        self._health = HealthServicer()
        self._started = False
        add_HealthServicer_to_server(self._health, self._health_server)
        add_HealthServicer_to_server(self._health, self.grpc)

    def bind(self) -> None:
        """Takes the ports.

        Raises:
            PortTaken: one of them is in use.
        """
        port = self._settings.port(self.service)
        self._bind(self.grpc, port, tls=True)
        self._bind(self._health_server, port + HEALTH_OFFSET, tls=False)
        if self.metrics is not None:
            _check_free(self.service, self._settings.listen.host, port + METRICS_OFFSET)
            self.metrics.serve(self._settings.listen.host, port + METRICS_OFFSET)

    async def start(self, services: Iterable[str] = ()) -> None:
        """Begins to serve, and says so for the server and for each of `services`, given by full name."""
        self._started = True
        for name in ("", *services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._health_server.start()
        await self.grpc.start()

    async def refuse(self) -> None:
        """Says that it no longer serves; calls are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_seconds: float | None) -> None:
        """Ends when the open calls have, at the latest after the grace."""
        if not self._started:
            # Stopping a server that never ran leaves its port bound. Whoever asks in between hears that it does not
            # serve: the health servicer says the opposite until it is told.
            await self._health.enter_graceful_shutdown()
            await self._health_server.start()
            await self.grpc.start()
        await self.grpc.stop(grace_seconds)
        await self._health_server.stop(None)
        if self.metrics is not None:
            # It waits for its thread.
            await asyncio.to_thread(self.metrics.close)

    def _bind(self, server: grpc.aio.Server, port: int, *, tls: bool) -> None:
        host = self._settings.listen.host
        _check_free(self.service, host, port)
        credentials = _credentials(self._settings) if tls else None
        address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
        try:
            if credentials is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise PortTaken(self.service, port, str(error)) from None


def _metrics(service: str) -> Metrics:
    # Its library is slow to load, and not always wanted.
    metrics: Metrics = imported("turnwire.runtime.metrics", setting="telemetry.metrics").Metrics(service)
    return metrics


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may lead anywhere


def _check_free(service: str, host: str, port: int) -> None:
    """Fails clearly where gRPC would only say that it could not bind."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise PortTaken(service, port, error.strerror or str(error)) from None


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    tls = settings.tls
    if tls.certificate is None or tls.key is None:
        return None
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    authority = tls.client_ca.read_bytes() if tls.client_ca is not None else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
