"""Records real turns of this version: `python -m tests.mesh.recorder` writes `tests/recordings/<version>/*.jsonl`.

It is run once before a version is tagged. The models, shields, banks and tools are scripted, the turns are real.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from tests.mesh.asking import session_of, weather_tool
from tests.mesh.peers import Peers, running_peers
from turnwire import __version__
from turnwire.agent.v1 import agent_pb2, agent_service_pb2
from turnwire.common.v1 import retrieval_pb2
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORDINGS = Path(__file__).parent.parent / "recordings"
KINDS = ("plain", "tools", "pause", "refusal", "retrieval", "recovered")
RULES: list[dict[str, Any]] = [
    {"after_tool": True, "text": "All is done."},
    {"contains": "both", "calls": [{"name": "echo", "arguments": {"text": "x"}}, {"name": "failing"}]},
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}]},
    {"contains": "whale", "text": "Whales are large [1]. They swim. They sing [2]."},
    {"contains": "story", "text": "Once upon", "hang": True, "times": 1},
    {"contains": "story", "text": "Once upon a time there was a turn."},
    {"contains": "plain", "text": "A plain answer."},
]


def _tool(tool_id: str) -> agent_pb2.AgentTool:
    return agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=tool_id))


def _chunk(bank: str, document: str, text: str) -> retrieval_pb2.RetrievedChunk:
    return retrieval_pb2.RetrievedChunk(bank_id=bank, document_id=document, title=document, text=text, score=0.7)


async def recorded(kind: str, mesh: RunningMesh, peers: Peers, client: Any) -> list[agent_service_pb2.TurnRecord]:
    """Runs a turn of a kind and returns its records."""
    config: dict[str, Any] = {}
    said = f"a {kind} turn"
    match kind:
        case "tools":
            said = "both"
            config = {"tools": [_tool("echo"), _tool("failing")], "output_shields": ["hide-done", "warn-All"]}
        case "pause":
            said = "what is the weather"
            config = {"tools": [weather_tool()]}
        case "refusal":
            said = "an evil plan"
            config = {"input_shields": ["warn-plan", "no-evil"]}
        case "retrieval":
            said = "the whale"
            peers.chunks = [_chunk("library", "moby.md", "A whale."), _chunk("archive", "log.md", "Another.")]
            config = {
                "input_shields": ["hide-4711"],
                "retrieval": agent_pb2.RetrievalConfig(bank_ids=["library", "archive"]),
            }
        case "recovered":
            said = "a story"
        case _:
            pass
    stream = client.run_turn(
        await session_of(client, **config), said, tools={"get_weather": lambda city: f"rain in {city}"}
    )
    killed = False
    async with stream:
        async for _ in stream:
            if kind == "recovered" and not killed and stream.text:
                killed = True
                await mesh.kill("agent")
                await mesh.start("agent")
    return await client.export_turn(stream.turn_id)


def lines(records: Sequence[agent_service_pb2.TurnRecord]) -> str:
    """Returns records as JSON lines."""
    return "".join(
        json_format.MessageToJson(record, preserving_proto_field_name=True, indent=None, ensure_ascii=False) + "\n"
        for record in records
    )


def parsed(text: str) -> list[agent_service_pb2.TurnRecord]:
    """Returns the records of JSON lines."""
    return [json_format.Parse(line, agent_service_pb2.TurnRecord()) for line in text.splitlines()]


async def _main() -> None:
    folder = RECORDINGS / __version__
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with (
        running_peers() as peers,
        running_mesh("processes", rules=RULES, addresses=peers.addresses) as mesh,
        mesh.client() as client,
    ):
        for kind in KINDS:
            records = await recorded(kind, mesh, peers, client)
            await asyncio.to_thread((folder / f"{kind}.jsonl").write_text, lines(records), "utf-8")


if __name__ == "__main__":
    asyncio.run(_main())
