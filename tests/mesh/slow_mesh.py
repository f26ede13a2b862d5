"""All services and the gateway, a process each, with a turn whose every kind of step takes a while on demand."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.memory.conftest import WordVectors, serving_words
from turnwire.agent.v1 import agent_pb2
from turnwire.memory.v1 import bank_pb2, document_pb2
from turnwire.testing.mesh import RunningMesh, free_port_offset, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.client import Client

SERVICES = ("inference", "safety", "memory", "sandbox_runner", "tool_executor", "agent")
SECONDS = 2.5
"""How long the step takes that a turn's text names: long enough to be hit, whatever else runs here."""
BANKS = ("library", "archive")
ANSWER = "The harpoon is old [1]."
_SOURCE = Path(__file__).resolve().parents[2]
_PACE = 10.0


def _slowly(text: str) -> dict[str, Any]:
    """Returns what a model writes over `SECONDS`: blanks, which nobody minds, and a text."""
    return {"pieces": [" "] * int(SECONDS * _PACE) + [text], "tokens_per_second": _PACE}


def _code(text: str) -> list[dict[str, Any]]:
    return [{"name": "code_interpreter", "arguments": {"code": text}}]


_RULES: list[dict[str, Any]] = [
    {"after_tool": True, "contains": "twice", "text": "It is twice-said."},
    {"after_tool": True, "text": ANSWER},
    {"contains": "slow inference", **_slowly(ANSWER)},
    {"contains": "slow output", "text": "A slow-answer."},
    {
        "contains": "slow tool",
        "calls": _code(f"import time\nprint('begun', flush=True)\ntime.sleep({SECONDS})\n6 * 7"),
    },
    {"contains": "compute", "calls": _code("6 * 7")},
    {"text": ANSWER},
]
_JUDGEMENTS: list[dict[str, Any]] = [
    {"contains": "slow input", **_slowly("safe")},
    {"contains": "slow-answer", **_slowly("safe")},
    {"text": "safe"},
]


@dataclass
class SlowMesh:
    """The mesh, its gateway, a client and an agent that has everything."""

    mesh: RunningMesh
    client: Client
    http: aiohttp.ClientSession
    agent_id: str = ""
    embedded: list[str] = field(default_factory=list[str])
    """What vectors were asked for."""
    _gateway: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the gateway is."""
        return f"http://{self.mesh.address('gateway')}"

    @property
    def gateway_pid(self) -> int:
        """The process of the gateway."""
        assert self._gateway is not None
        return self._gateway.pid

    async def kill(self, service: str) -> None:
        """Kills a service, or the gateway, and waits for its end."""
        if service != "gateway":
            await self.mesh.kill(service)
            return
        assert self._gateway is not None
        self._gateway.kill()
        await asyncio.to_thread(self._gateway.wait)

    async def start(self, service: str) -> None:
        """Starts a service, or the gateway, and returns when it is healthy."""
        if service != "gateway":
            await self.mesh.start(service)
            return
        config = str(self.mesh.folder / "turnwire.yaml")
        path = os.pathsep.join((str(_SOURCE / "services"), str(_SOURCE / "gateway"), os.environ.get("PYTHONPATH", "")))
        with (self.mesh.folder / "gateway.log").open("ab") as output:
            self._gateway = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-m", "turnwire.cli.main", "gateway", "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": path},
            )
        while not await self._answers():
            assert self._gateway.poll() is None, (self.mesh.folder / "gateway.log").read_text()[-2000:]
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Ends the gateway."""
        if self._gateway is not None and self._gateway.poll() is None:
            await self.kill("gateway")

    async def _answers(self) -> bool:
        try:
            async with self.http.get(f"{self.url}/livez") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def serving_vectors() -> AsyncGenerator[WordVectors]:
    """Vectors out of words; a text that says so takes its time."""
    async with serving_words() as served:
        served.slow_words, served.slow_seconds = "slow retrieval", SECONDS
        yield served


def _scripted(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "provider_id": name,
        "provider_type": "inline::scripted",
        "config": {"models": [name], "rules": rules},
    }


def providers(vectors: dict[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns real providers of every service, but for the models that write."""
    hidden = {"category": "weapon", "words": ["torpedo"], "level": "info", "redact": "[hidden]"}
    house = {"rules": [{"category": "whale", "words": ["leviathan"], "user_message": "Not of that."}, hidden]}
    return {
        "inference": [_scripted("scripted", rules), _scripted("judge", _JUDGEMENTS), vectors],
        "safety": [
            {"provider_id": "house", "provider_type": "inline::rules", "config": {"shields": {"house-rules": house}}},
            {"provider_id": "secrets", "provider_type": "inline::secrets"},
            {"provider_id": "guard", "provider_type": "inline::llama-guard", "config": {"model": "judge/judge"}},
        ],
        "memory": [{"provider_id": "vectors", "provider_type": "inline::qdrant-edge"}],
        "tool_executor": [{"provider_id": "code", "provider_type": "inline::code-interpreter"}],
    }


async def fill_banks(client: Client) -> None:
    """Makes the banks, with a document each."""
    for bank_id in BANKS:
        config = bank_pb2.VectorBankConfig(embedding_model="words")
        await client.banks.register(bank_pb2.MemoryBank(bank_id=bank_id, vector=config))
        document = document_pb2.Document(document_id=f"{bank_id}.md", title=bank_id, text=f"The harpoon of {bank_id}.")
        async for _ in client.banks.insert(bank_id, [document]):
            pass


@asynccontextmanager
async def running_slow_mesh() -> AsyncGenerator[SlowMesh]:
    """Gives the mesh, filled."""
    settings: dict[str, Any] = {
        "listen": {"port_offset": free_port_offset([*SERVICES, "gateway"])},
        "access": {"mesh_secret": "the secret of the mesh of a test"},
        "sandbox": {"preload": [], "packages": []},
        "memory": {"docs_dir": ""},
    }
    async with (
        serving_vectors() as vectors,
        running_mesh("processes", services=SERVICES, providers=providers(vectors.provider, _RULES), **settings) as mesh,
        mesh.client() as client,
        aiohttp.ClientSession(trust_env=False) as http,
    ):
        slow = SlowMesh(mesh, client, http, embedded=vectors.texts)
        try:
            await slow.start("gateway")
            await fill_banks(client)
            shields = ["house-rules", "secrets", "llama-guard"]
            config = agent_pb2.AgentConfig(
                model="scripted",
                input_shields=shields,
                output_shields=shields,
                retrieval=agent_pb2.RetrievalConfig(bank_ids=BANKS),
                tools=[agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="code_interpreter"))],
            )
            slow.agent_id = (await client.create_agent(config)).agent_id
            yield slow
        finally:
            await slow.close()
