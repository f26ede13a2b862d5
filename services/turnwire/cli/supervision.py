"""The processes of a mesh: started together, watched, ended together."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from turnwire.cli.checks.machine import refusal
from turnwire.cli.processes import process_start
from turnwire.cli.run_file import run_file_of, running_mesh_of, write_run_file
from turnwire.cli.serve import SUPERVISOR
from turnwire.cli.services import GATEWAY, SERVICES, edge
from turnwire.runtime.hosting import MESH_SECRET, NO_ISOLATION
from turnwire.runtime.settings.models import HEALTH_OFFSET, METRICS_OFFSET

if TYPE_CHECKING:
    from pathlib import Path

    from turnwire.runtime.settings import Settings

READY_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LONGEST_BACKOFF = 30.0
_RUNNER = "sandbox_runner"


class MeshFailed(Exception):
    """The mesh could not be started; the message says why."""


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0
    restart_at: float | None = None


@dataclass
class Mesh:
    """The child processes of `turnwire up`."""

    settings: Settings
    arguments: list[str]
    all_in_one: bool = False
    children: list[_Child] = field(default_factory=list[_Child])
    off: dict[str, str] = field(default_factory=dict[str, str])
    """Services that this machine cannot run, and why: the mesh works without them."""
    _secret: str = field(default_factory=lambda: secrets.token_hex(32))
    _ending: bool = False

    @property
    def run_file(self) -> Path:
        """Where the mesh says how to reach it."""
        return run_file_of(self.settings)

    def start(self) -> None:
        """Starts all services and returns when each is healthy. SIGTERM and SIGINT end the mesh from here on.

        Raises:
            MeshFailed: a port is taken, a mesh runs already, a service ended, or a signal came.
        """
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        self._check_alone()
        self._check_ports()
        (self.settings.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        for name in self._names():
            self.children.append(self._spawn(name))
        self._wait_ready()
        self._write_run_file()

    def watch(self) -> None:
        """Keeps the services running until SIGTERM or SIGINT."""
        while not self._ending:
            for child in self.children:
                self._look_after(child)
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends all services and waits for them; a further signal ends them at once."""
        for child in self.children:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self.children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self.run_file.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return [*(["all"] if self.all_in_one else SERVICES), *edge()]

    def _spawn(self, name: str) -> _Child:
        log = self.settings.data_dir / "logs" / f"{name}.log"
        command = [sys.executable, "-m", "turnwire.cli.all_in_one" if name == "all" else "turnwire.cli.main"]
        command += [f"--without={each}" for each in self.off] if name == "all" else [name.replace("_", "-")]
        environment = os.environ | {SUPERVISOR: str(os.getpid())}
        # The variable goes before the settings: a secret that is configured must not be hidden by a made one.
        if self.settings.access.mesh_secret is None:
            environment.setdefault(MESH_SECRET, self._secret)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, *self.arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        return _Child(name, process, time.monotonic())

    def _look_after(self, child: _Child) -> None:
        code = child.process.poll()
        if code is None:
            return
        now = time.monotonic()
        restart_at = child.restart_at
        if restart_at is None:
            child.failures = 0 if now - child.started > 60 else child.failures + 1
            delay = min(0.2 * 2**child.failures, _LONGEST_BACKOFF)
            child.restart_at = restart_at = now + delay
            click.echo(
                f"{child.name} ended with {code}; it starts again in {delay:.1f} s (logs: {self._log(child)})", err=True
            )
        if now >= restart_at:
            fresh = self._spawn(child.name)
            child.process, child.started, child.restart_at = fresh.process, fresh.started, None
            self._write_run_file()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        waiting = [*SERVICES, *edge()]
        while waiting:
            for child in list(self.children):
                if child.process.poll() == NO_ISOLATION and _RUNNER not in self.off:
                    self._go_without(child)
                    waiting.remove(_RUNNER)
                elif child.process.poll() is not None:
                    self.stop()
                    raise MeshFailed(f"{child.name} ended at its start:\n{self._tail(child)}")
            if self._ending:
                self.stop()
                raise MeshFailed("stopped before the mesh was up")
            waiting = [name for name in waiting if not _healthy(name, self._health_address(name))]
            if waiting and time.monotonic() > deadline:
                self.stop()
                raise MeshFailed(f"{', '.join(waiting)} did not become healthy; logs: {self.settings.data_dir}/logs")
            if waiting:
                time.sleep(0.05)

    def _go_without(self, child: _Child) -> None:
        """Goes on without the runner of model-written code: it refuses to run any that nothing isolates."""
        said = [line for line in self._tail(child, 100).splitlines() if line.startswith("turnwire ")]
        self.off[_RUNNER] = said[-1].partition(": ")[2] if said else "The log of the sandbox runner says why."
        self.children.remove(child)
        if self.all_in_one:
            self.children.insert(0, self._spawn(child.name))

    def _check_alone(self) -> None:
        running = running_mesh_of(self.settings)
        if running is not None:
            raise MeshFailed(
                f"a mesh runs already (process {running['pid']}, data in {self.settings.data_dir}): `turnwire down`"
                " stops it; `--data-dir` and `--port-offset` start a second one."
            )

    def _check_ports(self) -> None:
        for name in (*SERVICES, *edge()):
            for offset in (0, HEALTH_OFFSET, METRICS_OFFSET):
                port = self.settings.port(name) + offset
                why = refusal(self.settings.listen.host, port)
                if why:
                    raise MeshFailed(
                        f"port {port} of {name} {why}: stop what uses it, or move all ports with `--port-offset 1000`."
                    )

    def _health_address(self, name: str) -> str:
        host = self.settings.listen.host
        local = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - compared only
        return f"{local}:{self.settings.port(name) + HEALTH_OFFSET}"

    def _write_run_file(self) -> None:
        content = {
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "addresses": {name: self.settings.address(name) for name in (*SERVICES, *edge())},
            "off": self.off,
            "children": {child.name: child.process.pid for child in self.children},
            "data_dir": str(self.settings.data_dir.resolve()),
            "tls": {name: str(path.resolve()) for name, path in self.settings.tls if path is not None},
        }
        write_run_file(self.run_file, content)

    def _log(self, child: _Child) -> Path:
        return self.settings.data_dir / "logs" / f"{child.name}.log"

    def _tail(self, child: _Child, lines: int = 5) -> str:
        return "\n".join(self._log(child).read_text(errors="replace").splitlines()[-lines:])

    def _end(self, *_: object) -> None:
        if self._ending:
            for child in self.children:
                child.process.kill()
        self._ending = True


def _healthy(name: str, address: str) -> bool:
    if name == GATEWAY:
        return ready(address)
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=0.5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def ready(address: str) -> bool:
    """True when the gateway says so at its health address; proxies of the environment are for others."""
    from urllib.request import ProxyHandler, build_opener

    try:
        with build_opener(ProxyHandler({})).open(f"http://{address}/readyz", timeout=0.5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
