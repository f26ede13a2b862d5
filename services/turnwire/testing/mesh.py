"""A mesh within a test: real servers on free ports, in this process or a process each.

```python
async with running_mesh(rules=[{"contains": "hello", "text": "Hi."}]) as mesh, mesh.client() as client:
    session = await client.create_session("assistant")
    turn = await client.run_turn(session.session_id, "hello").result()
```
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from turnwire.cli.services import SERVICES
from turnwire.client import Client
from turnwire.runtime.hosting import Host, hosting
from turnwire.runtime.settings import Settings
from turnwire.runtime.settings.models import HEALTH_OFFSET
from turnwire.testing.ports import free_port_offset

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from turnwire.runtime.context import ServiceContext

Topology = Literal["one_process", "processes"]
_READY_SECONDS = 30.0
_PLAIN: dict[str, list[str]] = {"input_shields": [], "output_shields": [], "tools": [], "banks": []}
_SOURCE = str(Path(__file__).resolve().parents[2])


class RunningMesh:
    """The services of a test."""

    def __init__(
        self, topology: Topology, settings: Settings, folder: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        """Use `running_mesh`."""
        self.topology = topology
        self.settings = settings
        self.folder = folder
        self._config = folder / "turnwire.yaml"
        self._environ = environ or {}
        self._hosts: dict[str, tuple[AsyncExitStack, Host]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._config.write_text(json.dumps(json.loads(settings.model_dump_json())), encoding="utf-8")

    def address(self, service: str) -> str:
        """Returns where a service is."""
        return self.settings.address(service)

    def client(self, **connecting: Any) -> AbstractAsyncContextManager[Client]:
        """Returns the context of a client of this mesh; arguments are those of `Client.connect`."""
        here: dict[str, Any] = {"address": self.address("agent")}
        here |= {f"{name}_address": self.address(name) for name in ("inference", "memory")}
        return Client.connect(**here | connecting)

    def context(self, service: str) -> ServiceContext:
        """Returns what a service of this process was given. One process only."""
        return self._hosts[service][1].contexts[0]

    def pid(self, service: str) -> int:
        """Returns the process of a service. Processes only."""
        return self._processes[service].pid

    def log(self, service: str) -> str:
        """Returns what a service has logged. Processes only."""
        return (self.folder / f"{service}.log").read_text(errors="replace")

    async def start(self, service: str) -> None:
        """Starts a service and returns when it is healthy."""
        if self.topology == "one_process":
            stack = AsyncExitStack()
            host = await stack.enter_async_context(hosting([service], self.settings, SERVICES, environ={}))
            self._hosts[service] = stack, host
        else:
            await self._spawn(service)

    async def stop(self, service: str) -> None:
        """Stops a service as SIGTERM does, and waits for its end."""
        if self.topology == "one_process":
            stack, host = self._hosts.pop(service)
            await host.drain()
            await stack.aclose()
        else:
            await self.signal(service, signal.SIGTERM)
            await asyncio.to_thread(self._processes.pop(service).wait)

    async def kill(self, service: str) -> None:
        """Kills a service, and waits for its end. Processes only."""
        await self.signal(service, signal.SIGKILL)
        await asyncio.to_thread(self._processes.pop(service).wait)

    async def signal(self, service: str, number: signal.Signals) -> None:
        """Sends a signal to a service. Processes only."""
        self._processes[service].send_signal(number)

    async def close(self) -> None:
        """Stops what still runs."""
        for service in reversed(list(self._hosts)):
            stack, _ = self._hosts.pop(service)
            await stack.aclose()
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._processes.values():
            try:
                await asyncio.to_thread(process.wait, 20)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    async def _spawn(self, service: str) -> None:
        command = [sys.executable, "-m", "turnwire.cli.main", service.replace("_", "-"), "--config", str(self._config)]
        path = os.pathsep.join(part for part in (_SOURCE, os.environ.get("PYTHONPATH")) if part)
        with (self.folder / f"{service}.log").open("ab") as output:
            process = await asyncio.to_thread(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": path, **self._environ},
            )
        self._processes[service] = process
        await self._healthy(service, process)

    async def _healthy(self, service: str, process: subprocess.Popen[bytes]) -> None:
        address = f"127.0.0.1:{self.settings.port(service) + HEALTH_OFFSET}"
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{service} ended at its start:\n{self.log(service)[-2000:]}")
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                try:
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                except grpc.RpcError:
                    answer = None
            if answer is not None and answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"{service} did not become healthy:\n{self.log(service)[-2000:]}")
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running_mesh(
    topology: Topology = "one_process",
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    services: Sequence[str] = ("inference", "agent"),
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncGenerator[RunningMesh]:
    """Gives a mesh whose model follows `rules` (see `turnwire.testing.scripted`); stopped on exit.

    `environ` is what processes have in their environment besides that of this one, as `TURNWIRE_FAILPOINTS`.
    Further arguments are sections of the settings, as `agent={"heartbeat_seconds": 1}`. The same `folder` again finds
    the same state. The agent `assistant` has a model and nothing else, unless `agent` says what its `assistant` has.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        scripted = {
            "provider_id": "scripted",
            "provider_type": "inline::scripted",
            "config": {"rules": [dict(rule) for rule in rules]},
        }
        values: dict[str, Any] = {
            "listen": {"port_offset": free_port_offset(services)},
            "data_dir": str(place / "data"),
            "providers": {"inference": [scripted]},
            "telemetry": {"log_level": "info"},
            **settings,
            "agent": {"assistant": _PLAIN, **settings.get("agent", {})},
        }
        mesh = RunningMesh(topology, Settings.model_validate(values), place, environ)
        try:
            for service in services:
                await mesh.start(service)
            yield mesh
        finally:
            await mesh.close()
