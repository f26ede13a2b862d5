"""The gateway as a process: its ports, its health and metrics, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import structlog
import uvicorn
from starlette.applications import Starlette

from turnwire.errors import TurnwireError
from turnwire.ids import new_id
from turnwire.runtime.extras import ExtraMissing, imported
from turnwire.runtime.server import ExposedWithoutAccess, PortTaken
from turnwire.runtime.settings.models import HEALTH_OFFSET, METRICS_OFFSET
from turnwire_gateway.app import gateway_app, is_loopback
from turnwire_gateway.health import Health
from turnwire_gateway.upstream import Upstreams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping

    from starlette.types import ASGIApp

    from turnwire.runtime.settings import Settings, TlsSettings
    from turnwire.runtime.traces import Tracer
    from turnwire_gateway.metrics import HttpMetrics

_log = structlog.get_logger(__name__)
_NAME = "gateway"
_ENDPOINTS_SECONDS = 0.2
"""After readiness says no, callers have this long to look elsewhere."""
_MARGIN_SECONDS = 2.0
_UNSENT_BYTES = 64 * 1024
"""So much that is not yet on its way to a reader the system takes: by itself it takes 4 MiB for each that has stopped,
and holds up nobody before."""


class Gateway:
    """A gateway that serves."""

    def __init__(self, settings: Settings, draining: asyncio.Event, servers: list[_Server]) -> None:
        """Use `gateway_serving`."""
        self._settings = settings
        self._draining = draining
        self._servers = servers

    async def drain(self) -> None:
        """Says no to new work, tells streams to resume elsewhere, and ends when the open requests have."""
        self._draining.set()
        await asyncio.sleep(_ENDPOINTS_SECONDS)
        for server in self._servers:
            # In their order: the probes are answered until the last.
            server.config.timeout_graceful_shutdown = round(self._settings.agent.drain_seconds + _MARGIN_SECONDS)
            server.should_exit = True
            await server.ended.wait()


class _Server(uvicorn.Server):
    """Serves one port. The signals of the process are ours, not its."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.ended = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says so when it has begun to serve."""
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leaves them alone."""
        yield


@asynccontextmanager
async def gateway_serving(settings: Settings, *, environ: Mapping[str, str] = os.environ) -> AsyncGenerator[Gateway]:
    """Serves until the context is left.

    Raises:
        PortTaken: a port is in use.
        ExposedWithoutAccess: others could reach it, and there is no key.
        ExtraMissing: a setting needs a package that is not installed.
    """
    host = settings.listen.host
    if not settings.access.api_keys and not is_loopback(host):
        raise ExposedWithoutAccess(host)
    draining = asyncio.Event()
    port = settings.port(_NAME)
    async with AsyncExitStack() as stack:
        tracer = await _tracer(settings, stack)
        upstreams = Upstreams(settings, environ=environ, tracer=tracer)
        stack.push_async_callback(upstreams.close)
        metrics = _metrics(settings)
        app = gateway_app(settings, upstreams, draining, metrics)
        sockets = [_bound(host, port), _bound(host, port + HEALTH_OFFSET)]
        if metrics is not None:
            _bound(host, port + METRICS_OFFSET).close()
            metrics.serve(host, port + METRICS_OFFSET)
            stack.push_async_callback(asyncio.to_thread, metrics.close)
        probes = Starlette(routes=Health(draining).routes())
        servers = [
            _Server(_config(app, settings.limits.concurrent_calls, settings.tls)),
            _Server(_config(probes, 100, None)),
        ]
        for server, listening in zip(servers, sockets, strict=True):
            await stack.enter_async_context(_running(server, listening))
        yield Gateway(settings, draining, servers)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code of the process."""
    import uvloop  # only a process that serves needs it

    return uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        async with gateway_serving(settings) as gateway:
            _log.info("serving", services=[_NAME], ports=[settings.port(_NAME)], pid=os.getpid())
            await ended.wait()
            _log.info("draining", services=[_NAME])
            await gateway.drain()
    except (PortTaken, ExposedWithoutAccess, ExtraMissing, TurnwireError) as error:
        sys.stderr.write(f"turnwire {_NAME}: {error}\n")
        return 1
    return 0


@asynccontextmanager
async def _running(server: _Server, listening: socket.socket) -> AsyncGenerator[None]:
    """Runs a server in a task of its own; ends it at once when the context is left."""

    async def serve() -> None:
        try:
            await server.serve(sockets=[listening])
        finally:
            server.ended.set()
            server.up.set()

    task = asyncio.create_task(serve())
    try:
        await server.up.wait()
        if server.ended.is_set():
            await task
        yield
    finally:
        await _end(server, task)
        listening.close()


async def _end(server: _Server, serving: asyncio.Task[None]) -> None:
    """Ends a server at once, and with it what still answers."""
    # Connections that are idle close by themselves, those that answer never may.
    server.config.timeout_graceful_shutdown = 0 if server.server_state.tasks else 1
    server.should_exit = True
    await serving
    # uvicorn cancels them and waits for none.
    left = set(server.server_state.tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)


def _config(app: ASGIApp, concurrency: int, tls: TlsSettings | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=concurrency,
        timeout_keep_alive=75,
    )
    if tls is not None and tls.certificate is not None and tls.key is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls.client_ca)
        config.load()
        config.ssl = context
    return config


def _bound(host: str, port: int) -> socket.socket:
    """Returns a socket that has the port.

    Raises:
        PortTaken: something else has.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # connections have it from the socket that they came in by
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    try:
        listening.bind((host.strip("[]"), port))
        # SO_REUSEADDR lets two sockets bind; only one can listen.
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise PortTaken(_NAME, port, error.strerror or str(error)) from None
    return listening


def _metrics(settings: Settings) -> HttpMetrics | None:
    if not settings.telemetry.metrics:
        return None
    metrics: HttpMetrics = imported("turnwire_gateway.metrics", setting="telemetry.metrics").HttpMetrics()
    return metrics


async def _tracer(settings: Settings, stack: AsyncExitStack) -> Tracer | None:
    endpoint = settings.telemetry.otlp_endpoint
    if endpoint is None:
        return None
    module = imported("turnwire.runtime.traces", setting="telemetry.otlp_endpoint")
    traces = module.Traces(endpoint, new_id("inst"))
    stack.push_async_callback(traces.close)
    tracer: Tracer = traces.tracer(_NAME)
    return tracer
