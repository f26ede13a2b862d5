"""A whole mesh, a process each, between which everything can be hit: processes, connections, database, disk, clocks.

On SQLite there is one process of each service, on PostgreSQL three of the agent. Every connection between two of them,
to the clients and to the database goes through a proxy. What is written lies on a small disk of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.client.proxy import Proxy
from tests.fakes.images_server import fake_images
from tests.fakes.search_servers import fake_search
from tests.faults import voyage
from tests.faults.controller import Controller, controlling
from tests.memory.conftest import serving_words
from tests.mesh.asking import until, until_up
from tests.tool_executor.calling import SECRET, drawing, searching
from turnwire.client import Client
from turnwire.errors import AlreadyExists
from turnwire.memory.v1 import bank_pb2, document_pb2
from turnwire.testing.mesh import RunningMesh, running_mesh
from turnwire.testing.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from tests.fakes.images_server import FakeImages

LEASE_SECONDS = 2.0
_QUICK = {"lease_seconds": LEASE_SECONDS, "lease_renew_seconds": 0.5, "sweep_seconds": 0.5, "drain_seconds": 1.0}
_DISK_BYTES = 512 * 1024 * 1024
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
"""Of the package `libfaketime`: moves the clock of one process. None: it is not installed."""


class Disk:
    """A folder on a disk of its own, where one can be made; it can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        """Use `mounted`."""
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leaves no room."""
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 4096, 1):
                piece = b"\0" * size
                with contextlib.suppress(OSError):
                    while file.write(piece) == size:
                        pass

    def free(self) -> None:
        """Makes room again."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted() -> Generator[Disk]:
    """Gives a folder on a small disk in memory. Only root can mount one: others get a plain folder, never filled."""
    with tempfile.TemporaryDirectory(prefix="turnwire-faults-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if not can_mount():
            yield Disk(folder)
            return
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES},mode=0755", "none", name], check=True)
        try:
            yield Disk(folder)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def can_mount() -> bool:
    """True where a small disk can be made."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@dataclass
class World:
    """The processes, and what is between them."""

    store: str
    controller: Controller
    disk: Disk
    images: FakeImages
    postgres: Postgres | None = None
    meshes: dict[str, RunningMesh] = field(default_factory=dict[str, RunningMesh])
    """By the name of the process: a service, or `agent-1`."""
    proxies: dict[str, Proxy] = field(default_factory=dict[str, Proxy])
    """By the name of the process behind it; `postgres` has one too."""
    clients: list[Client] = field(default_factory=list[Client])
    agent_id: str = ""

    @property
    def agents(self) -> list[str]:
        """The processes of the agent service."""
        return [name for name in self.meshes if name.startswith("agent")]

    def process_of(self, pid: int) -> str:
        """Returns the name of a process."""
        return next(name for name, mesh in self.meshes.items() if mesh.pid(_service(name)) == pid)

    async def kill(self, process: str) -> None:
        """Kills a process."""
        await self.meshes[process].kill(_service(process))

    async def start(self, process: str) -> None:
        """Starts a process again; returns when it is healthy."""
        await self.meshes[process].start(_service(process))

    async def signal(self, process: str, number: signal.Signals) -> None:
        """Sends a signal to a process."""
        await self.meshes[process].signal(_service(process), number)

    def log(self, process: str) -> str:
        """Returns what a process has logged."""
        return self.meshes[process].log(_service(process))

    def set_clock(self, process: str, seconds: int) -> None:
        """Moves the clock of a process, or that of `postgres`, to so many seconds beside the true time."""
        if not self.controller.socket.exists():
            return  # the world has ended, and its clocks with it
        temporary = self._clock(process).with_suffix(".new")
        temporary.write_text(f"{seconds:+d}")
        temporary.replace(self._clock(process))

    async def settle(self) -> None:
        """Returns when each agent has a lease that is as long as leases are, by the clock of the database."""
        good = (
            "SELECT count(*) FROM turnwire_agent.leases WHERE"
            f" expire_time - extract(epoch FROM clock_timestamp()) * 1000000 BETWEEN 0 AND {LEASE_SECONDS * 1_000_000}"
        )
        postgres = self.postgres
        if postgres is None:
            return

        async def settled() -> bool:
            return int(await asyncio.to_thread(postgres.psql, good)) >= len(self.agents)

        await until(settled)

    def environ(self, process: str) -> dict[str, str]:
        """Returns the environment that makes a process hittable."""
        return {"TURNWIRE_FAILPOINTS": str(self.controller.socket), **self.clock_of(process)}

    def clock_of(self, process: str) -> dict[str, str]:
        """Returns the environment that gives a process a clock of its own."""
        if FAKETIME is None:
            return {}
        self.set_clock(process, 0)
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock(process)),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def _clock(self, process: str) -> Path:
        return self.controller.socket.parent / f"{process}.clock"


def _service(process: str) -> str:
    return "agent" if process.startswith("agent") else process


@asynccontextmanager
async def running_world(store: str) -> AsyncGenerator[World]:
    """Gives the mesh on `sqlite` or `postgres`, with its bank filled."""
    async with AsyncExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnwire-hit-", dir="/tmp")))
        run.chmod(0o755)  # a database that runs as another user reads its clock there
        disk = stack.enter_context(mounted())
        controller = await stack.enter_async_context(controlling(run / "failpoints"))
        images = await stack.enter_async_context(fake_images())
        search = await stack.enter_async_context(fake_search())
        vectors = await stack.enter_async_context(serving_words())
        world = World(store, controller, disk, images)
        settings: dict[str, Any] = {
            "providers": voyage.providers(vectors.provider, [drawing(images), searching(search)]),
            "access": SECRET,
            "sandbox": {"preload": [], "packages": [], "max_sandboxes": 64, "idle_seconds": 60},
            "memory": {"docs_dir": ""},
        }
        count = 1
        if store == "postgres":
            count = 3
            settings["store"] = {"url": await _database(stack, world)}
        await _start(stack, world, count, settings)
        await _fill(world)
        yield world


async def _database(stack: AsyncExitStack, world: World) -> str:
    environ = world.clock_of("postgres")
    world.postgres = await asyncio.to_thread(
        stack.enter_context, running_postgres(folder=world.disk.folder, environ=environ)
    )
    proxy = world.proxies["postgres"] = Proxy(f"127.0.0.1:{world.postgres.port}")
    await _opened(stack, proxy)
    url = world.postgres.url(tcp=True)
    return url.replace(f"127.0.0.1:{world.postgres.port}", proxy.address)


async def _opened(stack: AsyncExitStack, proxy: Proxy) -> None:
    await proxy.open()
    stack.push_async_callback(proxy.close)


async def _start(stack: AsyncExitStack, world: World, count: int, settings: dict[str, Any]) -> None:
    agents = ["agent"] if count == 1 else [f"agent-{number}" for number in range(count)]
    names = ["inference", "safety", "memory", "sandbox_runner", "tool_executor", *agents]
    for name in names:
        world.proxies[name] = Proxy("127.0.0.1:0")
        await _opened(stack, world.proxies[name])
    addresses = {name: world.proxies[name].address for name in names if name not in agents}

    async def start(name: str) -> None:
        folder = world.disk.folder / name
        folder.mkdir()
        own = _service(name)
        mesh = running_mesh(
            "processes",
            services=(own,),
            folder=folder,
            environ=world.environ(name),
            addresses={service: address for service, address in addresses.items() if service != own},
            agent=_QUICK | {"advertise_address": world.proxies[name].address},
            **settings,
        )
        world.meshes[name] = await stack.enter_async_context(mesh)
        world.proxies[name].lead_to(world.meshes[name].address(own))

    for name in names:
        await start(name)
    everyone = "ipv4:" + ",".join(world.proxies[name].address for name in agents)
    last = f"ipv4:{world.proxies[agents[-1]].address}"
    here: dict[str, Any] = {f"{name}_address": world.meshes[name].address(name) for name in ("inference", "memory")}
    for address in (everyone, last):
        client = Client.connect(address, keepalive_seconds=3, **here)
        world.clients.append(await stack.enter_async_context(client))


async def _fill(world: World) -> None:
    client = world.clients[0]

    async def filled() -> bool:
        config = bank_pb2.VectorBankConfig(embedding_model="words")
        with contextlib.suppress(AlreadyExists):
            await client.banks.register(bank_pb2.MemoryBank(bank_id=voyage.BANK, vector=config))
        document = document_pb2.Document(document_id="log.md", title="log", text="The voyage of the harpoon.")
        async for _ in client.banks.insert(voyage.BANK, [document]):
            pass
        world.agent_id = (await client.create_agent(voyage.config())).agent_id
        return True

    for each in world.clients:
        await until_up(each)
    await until(filled)
