"""Turns that other replicas run, as this one reads them: what is new, over connections to replicas that live."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from tests.agent.turns import TURN, completed, delta, inference_completed, numbered, row, started, step_started
from turnwire.agent.live.following import Following
from turnwire.agent.live.live_turn import LiveTurn
from turnwire.agent.live.peers import Peers
from turnwire.agent.log.reading import read_turn
from turnwire.agent.log.turn_log import TurnLog
from turnwire.agent.store import events, leases, turns
from turnwire.agent.store.schema import SCHEMA
from turnwire.agent.v1.turn_owner_service_pb2 import FollowTurnRequest
from turnwire.runtime.directory import Directory
from turnwire.runtime.settings import Settings
from turnwire.runtime.storage.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from turnwire.agent.v1 import event_pb2

ROW = row("another")
LOG = numbered(started(), step_started("s1"), delta("s1", 0, "hello"), inference_completed("s1"), completed("s1"))


@asynccontextmanager
async def _stored(url: str, log: Sequence[event_pb2.StepEvent]) -> AsyncGenerator[PostgresStore]:
    store = await PostgresStore.open(url, SCHEMA)
    try:
        await store.write(lambda tx: turns.insert(tx, "t", ROW))
        await store.write(lambda tx: events.append(tx, "t", TURN, log))
        await store.write(lambda tx: leases.take(tx, "another", "a:1", 60.0))
        yield store
    finally:
        await store.close()


async def test_a_log_is_read_on_where_it_was_left_and_its_end_has_the_text_of_a_step_before(postgres: str):
    async with _stored(postgres, LOG) as store:
        read = [await store.read(lambda tx, after=after: read_turn(tx, "t", TURN, after=after)) for after in range(6)]

    assert [list(range(after + 1, 6)) for after in range(6)] == [
        [event.sequence for event in found[1]] for found in read if found is not None
    ]
    ends = [found[1][-1].turn_completed.output for found in read[:5] if found is not None]
    assert ["hello"] * 5 == [output.parts[0].text for output in ends]


async def test_a_turn_that_is_silent_is_looked_at_without_reading_it_again(
    postgres: str, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    of_turn = events.of_turn

    async def noting(*args: Any, after: int = 0) -> list[event_pb2.StepEvent]:
        found = await of_turn(*args, after=after)
        asked.append(len(found))
        return found

    monkeypatch.setattr(events, "of_turn", noting)
    async with _stored(postgres, LOG[:3]) as store:
        nothing: Any = cast("object", None)
        following = Following(store, nothing, nothing, nothing)
        live = LiveTurn(tenant="t", row=ROW, log=TurnLog(TURN))
        states = [await following._look(live) for _ in range(3)]
        await store.write(lambda tx: events.append(tx, "t", TURN, LOG[3:4]))
        await following._look(live)
        following.close()

    assert [3, 0, 0, 1] == asked
    assert 4 == live.log.last_sequence
    assert ["a:1"] * 3 == [state.owner.address for state in states if state is not None and state.owner is not None]


async def test_the_channel_to_a_replica_that_is_gone_is_closed_once_nobody_uses_it():
    directory = Directory(Settings(), own_service="agent", mesh_secret=None)
    peers = Peers(directory)
    channels = directory._channels
    async with peers.reached("127.0.0.1:1"), peers.reached("127.0.0.1:2") as stub:
        gone: Any = stub
    async with peers.reached("127.0.0.1:3"):
        await peers.keep({"127.0.0.1:1"})
        assert ["127.0.0.1:1", "127.0.0.1:3"] == [address for address, _ in channels]
        with pytest.raises(grpc.aio.UsageError, match="closed"):
            await gone.FollowTurn(FollowTurnRequest(turn_id=TURN)).read()
    await peers.keep(set())
    assert [] == list(channels)
    async with peers.reached("127.0.0.1:2"):
        assert ["127.0.0.1:2"] == [address for address, _ in channels]
    await directory.close()


async def test_a_channel_that_comes_into_use_while_another_is_closed_stays_open():
    class Slow(Directory):
        closing, go_on = asyncio.Event(), asyncio.Event()

        async def close_peer(self, address: str) -> None:
            await super().close_peer(address)
            self.closing.set()
            await self.go_on.wait()

    directory = Slow(Settings(), own_service="agent", mesh_secret=None)
    peers = Peers(directory)
    async with peers.reached("127.0.0.1:1"), peers.reached("127.0.0.1:2"):
        pass
    keeping = asyncio.create_task(peers.keep(set()))
    await directory.closing.wait()
    async with peers.reached("127.0.0.1:2"):
        directory.go_on.set()
        await keeping
        assert ["127.0.0.1:2"] == [address for address, _ in directory._channels]
    await peers.keep(set())
    assert [] == list(directory._channels)
    await directory.close()


async def test_leases_that_are_good_tell_where_replicas_live(postgres: str):
    async with _stored(postgres, LOG[:1]) as store:
        await store.write(lambda tx: leases.take(tx, "gone", "a:2", -1.0))

        assert {"a:1"} == await store.read(leases.living)
