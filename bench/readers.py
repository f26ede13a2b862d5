"""`python -m bench.readers`: delays of turns beside one whose tool prints 64 MB, without and with 1,000 readers of it.

The readers never read.

Every turn is verified; one that is wrong ends the bench without figures, with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import uvloop

from bench.report import machine, percentile
from bench.script import SCRIPTED_LABEL, Script
from bench.stopped_readers import over_grpc
from bench.targets import Mesh
from bench.verification import BadTurn
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.fold import TurnFold
from turnwire.ids import new_id
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.client import Client

MIB = 1024 * 1024
PHASES = ("before", "while it prints", "after")
_SERVICES = ("inference", "sandbox_runner", "tool_executor", "agent")
_TOKENS = 8
_TELL = "tell"


@dataclass
class Figures:
    """What was measured with one number of readers."""

    first: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    """Seconds to the first token of other turns, by what the large turn did meanwhile."""
    whole: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    """Seconds of whole turns."""
    printing: list[float] = field(default_factory=list[float])
    """Seconds from when the tool may print to the end of its turn."""
    memory: dict[str, int] = field(default_factory=dict[str, int])
    """The most that a process had at the end of a phase, in bytes; pages shared with others in parts."""


class _Bench:
    def __init__(self, client: Client, address: str, pids: dict[str, int], turns: int) -> None:
        self._client = client
        self._address = address
        self._pids = pids
        self._turns = turns
        self._mesh = Mesh(client, pids, SCRIPTED_LABEL)

    async def measure(self, figures: Figures, readers: int) -> None:
        """Runs the large turn once, and other turns before, beside and after its output."""
        request = await self._request()
        fold, paused = TurnFold(), asyncio.Event()

        async def read() -> None:
            async for event in self._client.agent_stub.RunTurn(request):
                fold.apply(event)
                if fold.awaits_input:
                    paused.set()

        reading = asyncio.create_task(read())
        await paused.wait()
        async with over_grpc(self._address, request, readers):
            await self._others(figures, "before", self._turns)
            (asked,) = fold.turn.awaited_input.requests
            begun = time.perf_counter()
            await self._client.submit_turn_input(
                request.turn_id, [message_pb2.ToolResult(call_id=asked.call.call_id, content="print")]
            )
            while not reading.done():
                await self._others(figures, "while it prints", 1)
            await reading
            figures.printing.append(time.perf_counter() - begun)
            if fold.turn.status != turn_pb2.TURN_STATUS_COMPLETED or fold.turn != await self._client.get_turn(
                request.turn_id
            ):
                raise BadTurn(request.turn_id, f"the large turn ended as {fold.turn.status}, or not as it is stored")
            await self._others(figures, "after", self._turns)

    async def _request(self) -> agent_service_pb2.RunTurnRequest:
        """A turn that waits to be told that its tool may print."""
        told = generation_pb2.ToolDefinition(
            name=_TELL, description="Says when.", parameters_json_schema='{"type":"object"}'
        )
        tools = [
            agent_pb2.AgentTool(function=agent_pb2.FunctionTool(definition=told)),
            agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="code_interpreter")),
        ]
        agent = await self._client.create_agent(agent_pb2.AgentConfig(model="scripted", tools=tools))
        session = await self._client.create_session(agent.agent_id)
        return agent_service_pb2.RunTurnRequest(
            session_id=session.session_id,
            turn_id=new_id("turn"),
            messages=[user_message("when told")],
            follow_pauses=True,
        )

    async def _others(self, figures: Figures, phase: str, count: int) -> None:
        """Runs other turns, one at a time."""
        for place in await self._mesh.prepare(count, _TOKENS):
            answer = await self._mesh.turn(place, Script(SCRIPTED_LABEL, _TOKENS))
            answer.verify()
            figures.first[phase].append(answer.first_seconds)
            figures.whole[phase].append(answer.seconds)
        for name, pid in self._pids.items():
            used: int = psutil.Process(pid).memory_full_info().pss
            figures.memory[name] = max(used, figures.memory.get(name, 0))


async def measured(readers: int, rounds: int, turns: int, output_bytes: int) -> dict[int, Figures]:
    """Returns the figures without readers and with so many, each round in turn with the others.

    Raises:
        BadTurn: a turn was wrong.
    """
    code = f'for number in range({output_bytes} // 1024):\n    print(f"{{number:06d}} " + "é" * 508)\n'
    rules: list[dict[str, Any]] = [
        {"contains": "print", "calls": [{"name": "code_interpreter", "arguments": {"code": code}}]},
        {"after_tool": True, "text": "Done."},
        {"contains": "burst", "tokens": _TOKENS},
        {"contains": "when told", "calls": [{"name": _TELL, "arguments": {}}]},
    ]
    found = {0: Figures(), readers: Figures()}
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            running_mesh(
                "processes",
                services=_SERVICES,
                providers={
                    "inference": [
                        {"provider_id": "bench", "provider_type": "inline::scripted", "config": {"rules": rules}}
                    ],
                    "tool_executor": [{"provider_id": "code", "provider_type": "inline::code-interpreter"}],
                },
                access={"mesh_secret": "the secret of the mesh of a bench"},
                sandbox={"preload": [], "packages": [], "output_bytes": output_bytes + MIB},
            )
        )
        client = await stack.enter_async_context(mesh.client())
        bench = _Bench(client, mesh.address("agent"), {name: mesh.pid(name) for name in _SERVICES}, turns)
        await bench.measure(Figures(), 0)  # to warm up
        for number in range(rounds):
            # Who comes second finds a warmer machine: they take turns at it.
            for count in sorted(found, reverse=bool(number % 2)):
                await bench.measure(found[count], count)
    return found


def as_markdown(found: dict[int, Figures], rounds: int) -> str:
    """Returns the figures as tables, the ratios first of all."""
    about = machine()
    none, readers = sorted(found)
    alone, beside = found[none], found[readers]
    lines = [
        f"{about['time']}, {about['cores']} x {about['processor']}, {about['system']}, Python {about['python']},"
        f" rounds: {rounds}.",
        "",
        f"| the large turn | measured | p50, ms: no readers | {readers:,} readers | ratio | p99: no readers"
        f" | {readers:,} readers | turns |",
        f"|{' --- |' * 8}",
    ]
    for phase in PHASES:
        for name, one, other in (
            ("first token", alone.first[phase], beside.first[phase]),
            ("whole turn", alone.whole[phase], beside.whole[phase]),
        ):
            p50, with_readers = percentile(one, 0.5), percentile(other, 0.5)
            lines.append(
                f"| {phase} | {name} | {1000 * p50:.2f} | {1000 * with_readers:.2f} | {with_readers / p50:.2f}"
                f" | {1000 * percentile(one, 0.99):.1f} | {1000 * percentile(other, 0.99):.1f}"
                f" | {len(one)}, {len(other)} |"
            )
    lines += [
        "",
        f"The output took {percentile(alone.printing, 0.5):.2f} s without readers and"
        f" {percentile(beside.printing, 0.5):.2f} s with them (medians).",
        "",
        "| memory, MiB | no readers | with them |",
        "| --- | --- | --- |",
        *(f"| {name} | {alone.memory[name] / MIB:.0f} | {beside.memory[name] / MIB:.0f} |" for name in beside.memory),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.readers", description=__doc__)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=60, help="turns measured before and after the output, each round")
    parser.add_argument("--megabytes", type=int, default=64, help="how much the tool prints")
    chosen = parser.parse_args(arguments)
    if min(chosen.readers, chosen.rounds, chosen.turns, chosen.megabytes) < 1:
        parser.error("all numbers are at least 1")
    try:
        found = uvloop.run(measured(chosen.readers, chosen.rounds, chosen.turns, chosen.megabytes * MIB))
    except BadTurn as bad:
        sys.stderr.write(f"a bad turn, so there is no result: {bad}\n")
        return 1
    sys.stdout.write(as_markdown(found, chosen.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
