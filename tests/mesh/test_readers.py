"""1,000 readers that never read, beside a tool that writes 64 MB: what the processes of the mesh take for it."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest
from google.protobuf import json_format

from bench.stopped_readers import over_grpc, over_http
from tests.mesh.asking import check_log, events_of, folded, session_of, until, weather_tool
from tests.mesh.slow_mesh import SlowMesh
from tests.tool_executor.calling import CODE, SECRET, calling
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import message_pb2
from turnwire.testing.mesh import free_port_offset, running_mesh
from turnwire.tool_executor.v1 import artifact_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.client import Client

pytestmark = [pytest.mark.mesh, pytest.mark.soak, pytest.mark.timeout(120)]

MIB = 1024 * 1024
SIZE = 64 * MIB
SHOWN = 4 * MIB
"""So much of the output of a tool is told of while it runs."""
GRPC, HTTP = 700, 300
BOUNDS = {
    "agent": 256 * MIB,
    "tool_executor": 96 * MIB,
    "sandbox_runner": 128 * MIB,  # it keeps what a run gives until the executor takes it
    "inference": 64 * MIB,
    "gateway": 192 * MIB,
}
"""What a process may take, the pages that it shares with others in parts. docs/performance.md has the arithmetic."""

_LINES = SIZE // 1024
_PRINTING = f"""
for number in range({_LINES}):
    print(f"{{number:06d}} " + "é" * 508)
"""
_MAKING = f"""
with open("large.txt", "wb") as file:
    for number in range({_LINES}):
        file.write((f"{{number:06d}} " + "é" * 508 + chr(10)).encode())
print("made")
"""


def _line(number: int) -> bytes:
    return (f"{number:06d} " + "é" * 508 + "\n").encode()


def _code(text: str) -> dict[str, Any]:
    return {"name": "code_interpreter", "arguments": {"code": text}}


RULES = [
    {"contains": "go: print", "calls": [_code(_PRINTING)]},
    {"contains": "go: make", "calls": [_code(_MAKING)]},
    {"after_tool": True, "text": "All is done."},
    {"contains": "when told", "calls": [{"name": "get_weather", "arguments": {"city": "Bonn"}}]},
    {"contains": "other", "tokens": 40},
]
_SANDBOX = {
    "preload": [],
    "packages": [],
    "output_bytes": SIZE + MIB,
    "workspace_bytes": SIZE + 16 * MIB,
    "returned_bytes": SIZE + MIB,
}


@dataclass
class Sizes:
    """What the processes of a mesh take, and the most that they took."""

    pids: dict[str, int]
    most: dict[str, int] = field(default_factory=dict[str, int])

    def look(self) -> None:
        """Takes note of what they have now."""
        for name, pid in self.pids.items():
            # Pages of libraries that all of them have are counted once.
            used: int = psutil.Process(pid).memory_full_info().pss
            self.most[name] = max(used, self.most.get(name, 0))

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Looks again and again within the context."""

        async def look_again() -> None:
            while True:
                await asyncio.to_thread(self.look)
                await asyncio.sleep(0.02)

        looking = asyncio.create_task(look_again())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self.look()


@dataclass
class Mesh:
    """A mesh with a gateway, and its sizes."""

    slow: SlowMesh
    client: Client
    sizes: Sizes


@asynccontextmanager
async def _mesh() -> AsyncGenerator[Mesh]:
    services = ("inference", "sandbox_runner", "tool_executor", "agent")
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}
    async with (
        running_mesh(
            "processes",
            services=services,
            providers={"inference": [scripted], "tool_executor": [CODE]},
            listen={"port_offset": free_port_offset([*services, "gateway"])},
            access=SECRET,
            sandbox=_SANDBOX,
        ) as mesh,
        mesh.client() as client,
        aiohttp.ClientSession(trust_env=False) as http,
    ):
        slow = SlowMesh(mesh, client, http)
        try:
            await slow.start("gateway")
            pids = {name: mesh.pid(name) for name in services} | {"gateway": slow.gateway_pid}
            yield Mesh(slow, client, Sizes(pids))
        finally:
            await slow.close()


async def _over_sse(slow: SlowMesh, turn_id: str) -> list[event_pb2.StepEvent]:
    """Reads a turn through the gateway, to its end."""
    body = bytearray()
    async with slow.http.get(f"{slow.url}/v1/turns/{turn_id}/events?follow_pauses=true") as response:
        assert 200 == response.status
        async for piece in response.content.iter_any():
            body += piece
    lines = [line for line in body.decode().split("\n") if line.startswith("data: ")]
    events = [json_format.Parse(line.removeprefix("data: "), event_pb2.StepEvent()) for line in lines]
    return [event for event in events if event.WhichOneof("payload") != "heartbeat"]


async def _open_streams(slow: SlowMesh) -> int:
    """How many streams of turns the agent service has open, as it tells Prometheus."""
    address = f"http://127.0.0.1:{slow.mesh.settings.port('agent') + 200}/metrics"
    async with slow.http.get(address) as response:
        lines = (await response.text()).splitlines()
    streams = [line for line in lines if line.startswith("rpc_server_open_calls{") and "Turn" in line]
    return int(sum(float(line.split()[-1]) for line in streams))


@pytest.mark.parametrize("what", ["print", "make"])
async def test_readers_that_never_read_and_64_mb_of_a_tool_cost_a_bounded_memory(what: str):
    async with _mesh() as mesh:
        slow, client = mesh.slow, mesh.client
        tool = agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="code_interpreter"))
        request = agent_service_pb2.RunTurnRequest(
            session_id=await session_of(client, tools=[weather_tool(), tool]),
            turn_id="turn_large",
            messages=[user_message("when told")],
            follow_pauses=True,
        )
        events: list[event_pb2.StepEvent] = []

        async def read() -> None:
            async for event in client.agent_stub.RunTurn(request, timeout=100):
                if event.WhichOneof("payload") != "heartbeat":
                    events.append(event)

        async def waits() -> bool:
            return bool(events) and events[-1].WhichOneof("payload") == "turn_awaiting_input"

        reading = asyncio.create_task(read())
        await until(waits)
        async with (
            mesh.sizes.watched(),
            over_grpc(slow.mesh.address("agent"), request, GRPC) as stopped,
            over_http(slow.mesh.address("gateway"), "turn_large", HTTP),
        ):
            await until(lambda: _are_open(slow, GRPC + HTTP + 1))
            reading_sse = asyncio.create_task(_over_sse(slow, "turn_large"))
            call = events[-1].turn_awaiting_input.awaited_input.requests[0].call
            told = message_pb2.ToolResult(call_id=call.call_id, content=f"go: {what}")
            await client.submit_turn_input("turn_large", [told])
            await reading
            # Others are served meanwhile, on the same processes and through the same gateway.
            other = folded(await events_of(client, await session_of(client), "the other one"))
            by_sse = await reading_sse
            if what == "print":  # the other turn is short enough to be on its way as a whole
                assert GRPC + HTTP == await _open_streams(slow)
            # One that has stopped goes on.
            late = [event async for event in stopped[0] if event.WhichOneof("payload") != "heartbeat"]

        turn = folded(events)
        assert turn_pb2.TURN_STATUS_COMPLETED == other.status
        check_log(events)
        for seen in (by_sse, late):
            check_log(seen)
            assert turn == folded(seen)
        assert turn == await client.get_turn("turn_large")
        await _check(mesh, turn, what)
        await until(lambda: _are_open(slow, 0))
        assert [] == [line for line in slow.mesh.log("agent").splitlines() if '"level": "error"' in line]
        above = {name: used for name, used in mesh.sizes.most.items() if used > BOUNDS[name]}
        assert {} == above, {name: f"{used / MIB:.0f} MiB" for name, used in mesh.sizes.most.items()}


async def _are_open(slow: SlowMesh, count: int) -> bool:
    return await _open_streams(slow) == count


async def _check(mesh: Mesh, turn: turn_pb2.Turn, what: str) -> None:
    """Sees that the turn has what the tool gave: as a file whole, and of output the beginning besides."""
    execution: step_pb2.ToolExecution = turn.steps[-2].tool_execution.executions[0]
    assert not execution.result.HasField("failure"), execution.result.failure
    (attachment,) = execution.result.attachments
    expected = hashlib.sha256()
    for number in range(_LINES):
        expected.update(_line(number) if what == "make" or number < _LINES - 1 else _line(number)[:-1])
    async with calling(mesh.slow.mesh) as executor:
        found = await executor.artifacts.GetArtifact(
            artifact_service_pb2.GetArtifactRequest(artifact_id=attachment.artifact_id)
        )
    size = SIZE if what == "make" else SIZE - 1  # the line end at the end of an output is left out
    assert (size, expected.hexdigest()) == (found.artifact.size_bytes, found.artifact.sha256)
    if what == "print":
        assert execution.output.encode().startswith(b"".join(_line(number) for number in range(SHOWN // 1024)))
        assert execution.output.endswith("[More was written; it is not shown here.]\n")
        assert len(execution.result.content.encode()) < 48 * 1024
