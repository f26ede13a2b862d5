"""A commit that is heard of late: what it stored has gone on by then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.controller import Hit, Trigger, controlling
from tests.mesh.asking import events_of, folded
from turnwire.agent.v1 import turn_pb2
from turnwire.runtime.failpoints import VARIABLE
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from pathlib import Path

WORDS = "".join(f"w{number} " for number in range(1, 41))


@pytest.mark.mesh
@pytest.mark.faults
async def test_a_turn_that_runs_before_its_acceptance_is_heard_of_is_not_run_twice(tmp_path: Path):
    rules = [{"contains": "hello", "tokens": 40, "tokens_per_second": 40}]
    async with controlling(tmp_path / "failpoints") as controller:

        async def strike(hit: Hit) -> None:
            # The sweep finds a turn without a task, twice, and goes on with it.
            while not controller.counts["agent.first_token"]:
                await asyncio.sleep(0.02)
            hit.release()

        controller.arm(Trigger("agent.turn_started.after", 1, strike))
        environ = {VARIABLE: str(controller.socket)}
        agent = {"sweep_seconds": 0.1}
        async with (
            running_mesh("processes", rules=rules, environ=environ, agent=agent) as mesh,
            mesh.client() as client,
        ):
            session = await client.create_session("assistant")
            turn = folded(await events_of(client, session.session_id, "hello"))
            assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
            assert WORDS == turn.output.parts[0].text
            assert turn == await client.get_turn(turn.turn_id)
        assert 1 == controller.counts["agent.taken_over"]
        assert 1 == controller.counts["agent.model_asked"]
