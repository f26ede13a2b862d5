"""Turns go from one mesh to another as files: whole, unaltered, under an id of choice, or not at all."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.calling import dump
from tests.mesh.asking import events_of, session_of
from tests.mesh.peers import running_peers
from tests.mesh.recorder import RULES, lines, parsed, recorded
from turnwire.agent import records
from turnwire.agent.replay import replay
from turnwire.agent.v1 import turn_pb2
from turnwire.errors import AlreadyExists, InvalidArgument, NotFound, ResourceInUse, TurnDeleted
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.mesh


@asynccontextmanager
async def _two() -> AsyncGenerator[tuple[Any, Any, Any]]:
    """Gives a turn's recorder, and the clients of the mesh it runs in and of another."""
    async with running_peers() as peers:
        settings: dict[str, Any] = {"rules": RULES, "addresses": peers.addresses}
        async with (
            running_mesh(**settings) as mesh,
            running_mesh(**settings) as other,
            mesh.client() as client,
            other.client() as elsewhere,
        ):

            async def record(kind: str) -> Any:
                return await recorded(kind, mesh, peers, client)

            yield record, client, elsewhere


@pytest.mark.parametrize("kind", ["plain", "tools", "pause", "refusal", "retrieval"])
async def test_a_turn_is_the_same_in_the_mesh_that_takes_it(kind: str):
    async with _two() as (record, client, elsewhere):
        exported = await record(kind)
        session = await session_of(elsewhere)
        turn_id = exported[0].header.turn_id
        assert turn_id == (await elsewhere.import_turn(session, parsed(lines(exported)))).turn_id
        before, after = await client.get_turn(turn_id), await elsewhere.get_turn(turn_id)
        again = await elsewhere.export_turn(turn_id)

    assert session == after.session_id
    for turn in (before, after):
        for field in ("session_id", "agent_id", "ordinal"):
            turn.ClearField(field)
    assert before == after
    assert replay(records.read(exported)).decisions == replay(records.read(again)).decisions


async def test_the_session_goes_on_from_an_imported_turn_under_an_id_of_choice():
    async with _two() as (record, _, elsewhere):
        exported = await record("plain")
        session = await session_of(elsewhere)
        await events_of(elsewhere, session, "plain")
        turn = await elsewhere.import_turn(session, exported, turn_id="turn_of_choice")
        events = await events_of(elsewhere, session, "plain")
        listed = (await elsewhere.list_turns(session_id=session)).turns
        watched = [event async for event in elsewhere.watch_turn("turn_of_choice")]
        history = [each.history for each in await elsewhere.export_turn(events[0].turn_id) if each.HasField("history")]

    assert ("turn_of_choice", 2, turn_pb2.TURN_STATUS_COMPLETED) == (turn.turn_id, turn.ordinal, turn.status)
    assert [1, 2, 3] == [each.ordinal for each in listed]
    assert {"turn_of_choice"} == {event.turn_id for event in watched}
    assert ["plain", "A plain answer.", "a plain turn", "A plain answer."] == [
        message.parts[0].text for message in history
    ]


async def test_the_same_import_again_is_one_turn_and_another_of_its_id_is_refused():
    async with _two() as (record, _, elsewhere):
        exported, other = await record("plain"), await record("tools")
        session = await session_of(elsewhere)
        first = await elsewhere.import_turn(session, exported)
        assert first == await elsewhere.import_turn(session, exported)
        with pytest.raises(AlreadyExists):
            await elsewhere.import_turn(session, other, turn_id=first.turn_id)
        with pytest.raises(AlreadyExists):
            await elsewhere.import_turn(await session_of(elsewhere), exported)
        assert 1 == len((await elsewhere.list_turns(session_id=session)).turns)
        await elsewhere.delete_turn(first.turn_id)
        with pytest.raises(TurnDeleted):
            await elsewhere.import_turn(session, exported)


async def test_what_is_refused_leaves_nothing():
    async with running_peers() as peers:
        settings: dict[str, Any] = {"rules": RULES, "addresses": peers.addresses}
        async with running_mesh(**settings) as mesh, mesh.client() as client:
            exported = await recorded("tools", mesh, peers, client)
            session = await session_of(client)
            before = dump(mesh.folder)
            gap = [*exported[:4], *exported[5:]]
            for taken in (exported[:-1], gap, exported[1:], []):
                with pytest.raises(InvalidArgument):
                    await client.import_turn(session, taken, turn_id="turn_new")
            with pytest.raises(NotFound):
                await client.import_turn("sess_none", exported, turn_id="turn_new")

            assert before == dump(mesh.folder)


async def test_only_turns_that_have_ended_are_exported():
    async with running_mesh(rules=[{"hang": True}]) as mesh, mesh.client() as client:
        session = await session_of(client)
        stream = client.run_turn(session, "hello", turn_id="turn_running")
        async with stream:
            async for _ in stream:
                break
        with pytest.raises(ResourceInUse, match="Turn turn_running has not ended: wait for its end, or cancel it"):
            await client.export_turn("turn_running")
        with pytest.raises(ResourceInUse, match="Turn turn_running has not ended: cancel it first"):
            await client.delete_turn("turn_running")
        with pytest.raises(NotFound):
            await client.export_turn("turn_none")
        await client.cancel_turn("turn_running")

        result = replay(records.read(await client.export_turn("turn_running")))
        assert result.difference is None


async def test_what_shields_have_held_back_is_in_no_export():
    async with _two() as (record, _, _):
        refused, hidden = lines(await record("refusal")), lines(await record("tools"))

    assert "an evil plan" not in refused
    assert "All is [hidden]." in hidden
    assert "All is done" not in hidden
