"""A whole mesh whose state is in PostgreSQL: what it keeps, and what it does while the database is away."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from turnwire.agent.v1 import agent_pb2, turn_pb2
from turnwire.common.v1 import error_pb2
from turnwire.errors import NotFound, Unavailable
from turnwire.memory.v1 import bank_pb2
from turnwire.testing.mesh import running_mesh
from turnwire.testing.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

pytestmark = pytest.mark.mesh

ALL = ("inference", "safety", "memory", "tool_executor", "agent")
RULES = [
    {"contains": "long", "tokens": 60, "tokens_per_second": 60},
    {"contains": "hello", "text": "Hi there."},
]
WHOLE = "".join(f"w{number} " for number in range(1, 61))


@pytest.fixture
def own_server() -> Generator[Postgres]:
    """A server that a test may end."""
    with running_postgres(durable=False) as server:
        yield server


async def test_all_services_keep_their_state_there_and_find_it_again(
    mesh_in: Callable[..., Any], postgres: str, postgres_server: Postgres, tmp_path: Path
):
    providers = {
        "inference": [{"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}],
        "memory": [{"provider_id": "tables", "provider_type": "inline::sqlite"}],
    }
    settings = {"services": ALL, "store": {"url": postgres}, "folder": tmp_path, "providers": providers}
    async with mesh_in(**settings) as mesh, mesh.client() as client:
        config = agent_pb2.AgentConfig(model="scripted", instructions="Be short.")
        agent = await client.create_agent(config, name="poet")
        config.instructions = "Be long."
        agent.config.CopyFrom(config)
        changed = await client.update_agent(agent)
        session = (await client.create_session(agent.agent_id)).session_id
        turns = [await client.run_turn(session, f"hello {number}").result() for number in range(5)]
        await client.banks.register(bank_pb2.MemoryBank(bank_id="notes", keyword=bank_pb2.KeywordBankConfig()))
        document = await client.banks.document("whales", b"Whales sing in the deep.", name="whales.txt")
        progress = [each async for each in client.banks.insert("notes", [document])]
        await client.register_model("scripted-two", provider_id="scripted", provider_model_id="scripted")

    async with mesh_in(**settings) as mesh, mesh.client() as client:
        versions = (await client.list_agent_versions(agent.agent_id)).agents
        assert ["Be long.", "Be short."] == [each.config.instructions for each in versions]
        assert changed == await client.get_agent(agent.agent_id)
        listed = (await client.list_turns(session_id=session, page_size=3)).turns
        assert [turn.turn_id for turn in turns[:3]] == [turn.turn_id for turn in listed]
        for turn in turns:
            assert turn == await client.get_turn(turn.turn_id)
        fork = await client.fork_session(session, turn_id=turns[2].turn_id)
        again = await client.run_turn(fork.session_id, "hello again").result()
        assert 4 == again.ordinal
        found = await client.banks.query("whales", ["notes"])
        assert ["whales"] == [chunk.document_id for chunk in found.chunks]
        assert progress
        assert "scripted-two" in {model.model_id for model in (await client.list_models()).models}
        await client.delete_turn(turns[4].turn_id)
        with pytest.raises(NotFound):
            await client.get_turn(turns[4].turn_id)
        await client.delete_session(fork.session_id)
        await client.delete_session(session, force=True)
        with pytest.raises(NotFound):
            await client.get_session(session)

    # What lies in files is the index of the bank, whose provider says so in its name.
    assert ["memory-tables.sqlite3"] == sorted(file.name for file in tmp_path.rglob("*.sqlite3"))
    schemas = postgres_server.psql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'turnwire%'", _name(postgres))
    assert {f"turnwire_{service}" for service in ALL} == set(schemas.splitlines())


async def test_a_service_of_one_mesh_takes_nothing_of_another_ones(postgres_server: Postgres):
    with postgres_server.database() as first, postgres_server.database() as second:
        async with running_mesh(store={"url": first}) as mesh, mesh.client() as client:
            session = (await client.create_session("assistant")).session_id
        async with running_mesh(store={"url": second}) as mesh, mesh.client() as client:
            with pytest.raises(NotFound):
                await client.get_session(session)


@pytest.mark.faults
async def test_turns_go_on_over_restarts_of_the_database(own_server: Postgres):
    chance = random.Random(5)
    with own_server.database() as url:
        async with running_mesh("processes", rules=RULES, store={"url": url}) as mesh, mesh.client() as client:
            for end in (own_server.kill, own_server.stop):
                sessions = [await client.create_session("assistant") for _ in range(8)]
                turns = [client.run_turn(session.session_id, "a long one") for session in sessions]
                results = [asyncio.create_task(turn.result()) for turn in turns]
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                await asyncio.to_thread(end)
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                await asyncio.to_thread(own_server.start)
                for result in await asyncio.gather(*results):
                    assert turn_pb2.TURN_STATUS_COMPLETED == result.status
                    assert WHOLE == result.output.parts[0].text
                    assert result == await client.get_turn(result.turn_id)
                    assert 1 == result.steps[0].attempt
            after = await client.run_turn(sessions[0].session_id, "hello").result()
            assert "Hi there." == after.output.parts[0].text


@pytest.mark.faults
@pytest.mark.everyday
async def test_while_the_database_is_away_that_is_what_callers_hear(own_server: Postgres):
    with own_server.database() as url:
        async with running_mesh(rules=RULES, store={"url": url}) as mesh, mesh.client() as client:
            session = (await client.create_session("assistant")).session_id
            await asyncio.to_thread(own_server.kill)
            for asked in (client.get_session(session), client.create_session("assistant")):
                with pytest.raises(Unavailable) as raised:
                    await asked
                assert error_pb2.ERROR_REASON_STORE_UNAVAILABLE == raised.value.reason
                assert "agent" == raised.value.metadata["service"]
            await asyncio.to_thread(own_server.start)
            turn = await client.run_turn(session, "hello").result()
            assert "Hi there." == turn.output.parts[0].text


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
