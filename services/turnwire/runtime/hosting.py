"""Any subset of the services in one process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import structlog

from turnwire.common.v1.inspect_service_pb2_grpc import add_InspectServiceServicer_to_server
from turnwire.errors import IsolationUnavailable, TurnwireError
from turnwire.ids import new_id
from turnwire.runtime import failpoints
from turnwire.runtime.context import ServiceContext
from turnwire.runtime.directory import Directory
from turnwire.runtime.extras import ExtraMissing, imported
from turnwire.runtime.inspect import InspectServicer
from turnwire.runtime.server import ExposedWithoutAccess, PortTaken, ServiceServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from turnwire.runtime.settings import Settings
    from turnwire.runtime.traces import Traces

_log = structlog.get_logger(__name__)

MESH_SECRET = "TURNWIRE_MESH_SECRET"  # noqa: S105 - the name of the variable
NO_ISOLATION = 69
"""The exit code of a process whose code could not be isolated: trying again changes nothing."""
_ENDPOINTS_SECONDS = 0.2
"""After health says no, callers have this long to look elsewhere."""
_STOP_SECONDS = 2.0


class Host:
    """The services of a process, while they are served."""

    def __init__(self, servers: list[ServiceServer], contexts: list[ServiceContext]) -> None:
        """Holds what `hosting` has opened."""
        self.servers = servers
        self.contexts = contexts

    async def drain(self) -> None:
        """Says no to new work and lets the services finish what they can."""
        for server in self.servers:
            await server.refuse()
        for context in self.contexts:
            context.draining.set()
        await asyncio.sleep(_ENDPOINTS_SECONDS)
        longest = max(context.settings.agent.drain_seconds for context in self.contexts)
        await asyncio.gather(*(server.stop(longest + _STOP_SECONDS) for server in self.servers))


@asynccontextmanager
async def hosting(
    names: Sequence[str],
    settings: Settings,
    table: Mapping[str, str],
    *,
    environ: Mapping[str, str] = os.environ,
) -> AsyncGenerator[Host]:
    """Serves services until the context is left; only their modules are imported.

    `table` maps the name of a service to its module, which offers `mount(server, directory, context)`.

    Raises:
        PortTaken: a port is in use.
        ExposedWithoutAccess: others could reach it, and there is no key.
        ExtraMissing: a setting needs a package that is not installed.
        TurnwireError: a service could not open what it needs.
    """
    secret = environ.get(MESH_SECRET) or settings.access.mesh_secret
    instance_id = new_id("inst")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(failpoints.armed(names, environ))
        traces = _traces(settings, instance_id)
        if traces is not None:
            stack.push_async_callback(traces.close)
        servers: list[ServiceServer] = []
        contexts: list[ServiceContext] = []
        recorded: list[dict[str, Any]] = []
        for name in names:
            tracer = traces.tracer(name) if traces is not None else None
            # One for each service, even in one process: they call under their own names.
            directory = Directory(settings, own_service=name, mesh_secret=secret, environ=environ, tracer=tracer)
            stack.push_async_callback(directory.close)
            server = ServiceServer(name, settings, secret, tracer)
            stack.push_async_callback(server.stop, None)
            server.bind()
            context = ServiceContext(name, settings, settings.data_dir, instance_id)
            app: Any = import_module(table[name])
            handlers = _recorded(server.grpc)
            await stack.enter_async_context(app.mount(server.grpc, directory, context))
            add_InspectServiceServicer_to_server(InspectServicer([context], handlers), server.grpc)
            if settings.reflection:
                _reflect(server.grpc, handlers)
            servers.append(server)
            contexts.append(context)
            recorded.append(handlers)
        for server, handlers in zip(servers, recorded, strict=True):
            await server.start(_services(handlers))
        yield Host(servers, contexts)
        await asyncio.gather(*(server.stop(0) for server in servers))


def run(names: Sequence[str], settings: Settings, table: Mapping[str, str]) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code of the process."""
    import uvloop  # only a process that serves needs it

    return uvloop.run(_serve(names, settings, table))


async def _serve(names: Sequence[str], settings: Settings, table: Mapping[str, str]) -> int:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        async with hosting(names, settings, table) as host:
            _log.info("serving", services=list(names), ports=[settings.port(name) for name in names], pid=os.getpid())
            await ended.wait()
            _log.info("draining", services=list(names))
            await host.drain()
    except (PortTaken, ExposedWithoutAccess, ExtraMissing, TurnwireError) as error:
        sys.stderr.write(f"turnwire {' '.join(names)}: {error}\n")
        return NO_ISOLATION if isinstance(error, IsolationUnavailable) else 1
    return 0


def _recorded(server: Any) -> dict[str, Any]:
    """Records the handlers that are added to a server, by full name: gRPC keeps them to itself."""
    handlers: dict[str, Any] = {}
    register = server.add_registered_method_handlers

    def recording(service: str, methods: Mapping[str, Any]) -> None:
        handlers.update({f"{service}/{name}": handler for name, handler in methods.items()})
        register(service, methods)

    server.add_registered_method_handlers = recording
    return handlers


def _reflect(server: Any, handlers: Mapping[str, Any]) -> None:
    # Imported only where it is switched on.
    reflection = imported("grpc_reflection.v1alpha.reflection", setting="reflection")
    reflection.enable_server_reflection([*_services(handlers), reflection.SERVICE_NAME], server)


def _services(handlers: Mapping[str, Any]) -> list[str]:
    return sorted({name.partition("/")[0] for name in handlers})


def _traces(settings: Settings, instance_id: str) -> Traces | None:
    endpoint = settings.telemetry.otlp_endpoint
    if endpoint is None:
        return None
    # OpenTelemetry is loaded by processes that export only.
    traces: Traces = imported("turnwire.runtime.traces", setting="telemetry.otlp_endpoint").Traces(
        endpoint, instance_id
    )
    return traces
