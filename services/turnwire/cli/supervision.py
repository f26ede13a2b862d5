"""The processes of a mesh: started together, watched, ended together."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from turnwire.cli.serve import SUPERVISOR
from turnwire.cli.services import SERVICES
from turnwire.runtime.settings.models import HEALTH_OFFSET, METRICS_OFFSET

if TYPE_CHECKING:
    from pathlib import Path

    from turnwire.runtime.settings import Settings

READY_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LONGEST_BACKOFF = 30.0


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
    _secret: str = field(default_factory=lambda: secrets.token_hex(32))
    _ending: bool = False

    @property
    def run_file(self) -> Path:
        """Where the mesh says how to reach it."""
        return self.settings.data_dir / "run" / "mesh.json"

    def start(self) -> None:
        """Starts all services and returns when each is healthy.

        Raises:
            MeshFailed: a port is taken, a mesh runs already, or a service ended.
        """
        self._check_alone()
        self._check_ports()
        for folder in ("run", "logs"):
            (self.settings.data_dir / folder).mkdir(parents=True, exist_ok=True)
        for name in self._names():
            self.children.append(self._spawn(name))
        self._wait_ready()
        self._write_run_file()

    def watch(self) -> None:
        """Keeps the services running until SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        while not self._ending:
            for child in self.children:
                self._look_after(child)
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends all services and waits for them."""
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
        return ["all"] if self.all_in_one else list(SERVICES)

    def _spawn(self, name: str) -> _Child:
        log = self.settings.data_dir / "logs" / f"{name}.log"
        command = [sys.executable, "-m", "turnwire.cli.all_in_one" if name == "all" else "turnwire.cli.main"]
        command += [] if name == "all" else [name.replace("_", "-")]
        environment = os.environ | {SUPERVISOR: str(os.getpid())}
        environment.setdefault("TURNWIRE_MESH_SECRET", self._secret)
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
        waiting = list(SERVICES)
        while waiting:
            for child in self.children:
                if child.process.poll() is not None:
                    self.stop()
                    raise MeshFailed(f"{child.name} ended at its start:\n{self._tail(child)}")
            waiting = [name for name in waiting if not _healthy(self.settings.port(name) + HEALTH_OFFSET)]
            if waiting and time.monotonic() > deadline:
                self.stop()
                raise MeshFailed(f"{', '.join(waiting)} did not become healthy; logs: {self.settings.data_dir}/logs")
            if waiting:
                time.sleep(0.05)

    def _check_alone(self) -> None:
        running = read_run_file(self.run_file)
        if running is not None and is_running(running):
            raise MeshFailed(
                f"a mesh runs already (process {running['pid']}, data in {self.settings.data_dir}): `turnwire down`"
                " stops it; `--data-dir` and `--port-offset` start a second one."
            )

    def _check_ports(self) -> None:
        for name in SERVICES:
            for offset in (0, HEALTH_OFFSET, METRICS_OFFSET):
                port = self.settings.port(name) + offset
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind((self.settings.listen.host, port))
                    except OSError as error:
                        raise MeshFailed(
                            f"port {port} of {name} is taken{_holder(port)} ({error.strerror}): stop what uses it, or"
                            " move all ports with `--port-offset 1000`."
                        ) from None

    def _write_run_file(self) -> None:
        content = {
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "addresses": {name: self.settings.address(name) for name in SERVICES},
            "children": {child.name: child.process.pid for child in self.children},
            "data_dir": str(self.settings.data_dir.resolve()),
        }
        fresh = self.run_file.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=2), encoding="utf-8")
        fresh.replace(self.run_file)

    def _log(self, child: _Child) -> Path:
        return self.settings.data_dir / "logs" / f"{child.name}.log"

    def _tail(self, child: _Child) -> str:
        return "\n".join(self._log(child).read_text(errors="replace").splitlines()[-5:])

    def _end(self, *_: object) -> None:
        self._ending = True


def read_run_file(path: Path) -> dict[str, Any] | None:
    """Returns what a mesh wrote of itself, or None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "pid" in found else None


def is_running(mesh: dict[str, Any]) -> bool:
    """True when the process that wrote a run file still lives; another one may have its number by now."""
    return process_start(int(mesh["pid"])) == mesh.get("started") is not None


def process_start(pid: int) -> str | None:
    """Returns when a process started, in the kernel's ticks; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie has ended.
    return None if fields[0] == "Z" else fields[19]


def _healthy(port: int) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=0.5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _holder(port: int) -> str:
    """Names the process that listens on a port, as far as one may know."""
    try:
        import psutil
    except ImportError:
        return ""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return ""
    return ""
