"""A whole turn on the command line: what shields found, what was looked up, what an answer rests on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import turnwire
from tests.mesh.asking import session_of
from tests.mesh.peers import running_peers
from turnwire.agent.v1 import agent_pb2
from turnwire.common.v1 import retrieval_pb2
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.mesh


async def test_steps_beside_the_model_are_told_and_the_pipe_gets_the_answer(tmp_path: Path):
    calls = [{"name": "drawing", "arguments": {"text": "x"}}]
    rules = [{"after_tool": True, "text": "It is large [1]."}, {"contains": "whale", "calls": calls}]
    async with running_peers() as peers:
        peers.chunks = [
            retrieval_pb2.RetrievedChunk(bank_id="library", document_id="d", title="moby.md", text="Large.")
        ]
        async with running_mesh(rules=rules, addresses=peers.addresses) as mesh, mesh.client() as client:
            session = await session_of(
                client,
                input_shields=["warn-whale"],
                retrieval=agent_pb2.RetrievalConfig(bank_ids=["library"]),
                tools=[agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="drawing"))],
            )
            env = {"TURNWIRE_AGENT_ADDRESS": mesh.address("agent")}
            ask = ("ask", "--session", session, "a whale?")
            done = await asyncio.to_thread(turnwire, *ask, env=env, cwd=tmp_path)

    assert (0, "It is large [1].\n") == (done.code, done.out)
    for told in (
        "the shield warn-whale found something (warn)",
        "looked up: moby.md",
        "drawing → drawn",
        "rests on moby.md",
        "made figure.png (art_1)",
    ):
        assert told in done.err
