"""Deciding about a call whose outcome was lost, from the command line."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import Done, turnwire
from tests.mesh.peers import running_peers
from turnwire.agent.v1 import agent_pb2
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

pytestmark = pytest.mark.mesh
RULES = [
    {"contains": "It was lost", "text": "I do not know."},
    {"contains": "by hand", "text": "Good."},
    {"after_tool": True, "text": "Now it is done."},
    {"contains": "pay", "calls": [{"name": "losing", "arguments": {"text": "100"}}]},
]


@asynccontextmanager
async def _asked() -> AsyncGenerator[tuple[Callable[..., Awaitable[Done]], list[str], Done]]:
    """Gives the command, the words with which it answers, and the turn that asks."""
    async with (
        running_peers() as peers,
        running_mesh(rules=RULES, addresses=peers.addresses) as mesh,
        mesh.client() as client,
    ):
        tool = agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="losing"))
        agent = await client.create_agent(agent_pb2.AgentConfig(model="scripted", tools=[tool]))

        async def run(*words: str) -> Done:
            env = {"TURNWIRE_AGENT_ADDRESS": mesh.address("agent")}
            return await asyncio.to_thread(turnwire, *words, cwd=mesh.folder, env=env)

        ended = await run("ask", "pay", "--agent", agent.agent_id)
        hint = re.search(r"turnwire (turns resolve \S+ \S+) retry\|skip\|provide --watch", ended.err)
        assert hint is not None, ended.err
        yield run, hint[1].split(), ended


async def test_the_turn_shows_what_it_asks_and_how_to_answer():
    async with _asked() as (run, words, ended):
        without = await run(*words, "provide")
        needless = await run(*words, "skip", "a result")

    assert (3, "") == (ended.code, ended.out)
    assert 'nobody knows what became of losing({"text": "100"})' in ended.err
    assert (2, 2) == (without.code, needless.code)


@pytest.mark.parametrize(
    ("choice", "told", "answer"),
    [
        (["retry"], "losing is called again", "Now it is done."),
        (["skip"], "the model is told that the outcome of losing is not known", "I do not know."),
        (["provide", "Paid by hand."], "losing → Paid by hand.", "Good."),
    ],
    ids=["retry", "skip", "provide"],
)
async def test_a_decision_is_taken_and_the_turn_goes_on(choice: list[str], told: str, answer: str):
    async with _asked() as (run, words, _):
        decided = await run(*words, *choice, "--watch")

    assert (0, f"{answer}\n") == (decided.code, decided.out)
    assert told in decided.err
