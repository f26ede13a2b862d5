"""Who owns a turn: leases by the database's clock, claims of which one succeeds, and what waits for the database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.turns import TURN, inference_completed, row, started, step_started
from turnwire.agent.live.lease import Lease
from turnwire.agent.log.turn_log import TurnLog
from turnwire.agent.log.writer import FORMAT, UNSTORED_BYTES, TurnWriter, draft
from turnwire.agent.store import events, inbox, leases, ownership, turns
from turnwire.agent.store.inbox import CANCEL, Entry
from turnwire.agent.store.ownership import Claimed, Owner
from turnwire.agent.store.schema import SCHEMA
from turnwire.agent.store.turns import TurnRow
from turnwire.agent.turn.held import results_body
from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import message_pb2, shield_pb2
from turnwire.errors import NotOwner, StoreUnavailable
from turnwire.runtime.settings import AgentSettings
from turnwire.runtime.storage.postgres import PostgresStore
from turnwire.testing.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from turnwire.runtime.storage import Store

SETTINGS = AgentSettings(lease_seconds=2.0, lease_renew_seconds=0.1)


@pytest.fixture
def own_server() -> Generator[Postgres]:
    """A server that a test may end."""
    with running_postgres(durable=False) as server:
        yield server


@asynccontextmanager
async def _opened(url: str) -> AsyncGenerator[PostgresStore]:
    store = await PostgresStore.open(url, SCHEMA)
    try:
        yield store
    finally:
        await store.close()


def _row(owner: str, *, turn_id: str = TURN, **other: Any) -> TurnRow:
    return row(owner, turn_id=turn_id, session_id=f"sess of {turn_id}", **other)


async def _insert(store: Store, row: TurnRow) -> None:
    assert await store.write(lambda tx: turns.insert(tx, "t", row))


async def _claim(store: Store, instance_id: str, *, leased: float = 60.0, **how: Any) -> Claimed | Owner | None:
    await store.write(lambda tx: leases.take(tx, instance_id, "its:1", leased))
    return await store.write(
        lambda tx: ownership.claim(tx, "t", TURN, instance_id=instance_id, known_format=FORMAT, **how)
    )


async def test_a_turn_is_claimed_when_the_lease_of_its_owner_has_ended_and_not_before(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("old"))
        await store.write(lambda tx: leases.take(tx, "old", "1.2.3.4:5", 60.0))
        assert Owner("old", "1.2.3.4:5", 1) == await _claim(store, "new")
        assert [] == await store.read(lambda tx: ownership.abandoned(tx, FORMAT))
        await store.write(lambda tx: leases.take(tx, "old", "1.2.3.4:5", -1.0))
        assert [("t", TURN)] == await store.read(lambda tx: ownership.abandoned(tx, FORMAT))
        assert not await store.write(lambda tx: leases.renew(tx, "old", 60.0))
        claimed = await _claim(store, "new")

        assert isinstance(claimed, Claimed)
        assert ("new", 2, False) == (claimed.row.owner, claimed.row.epoch, claimed.released)


async def test_who_has_no_lease_itself_claims_nothing(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("old"))
        with pytest.raises(NotOwner):
            await _claim(store, "new", leased=-1.0)
        assert [("t", TURN)] == await store.read(lambda tx: ownership.abandoned(tx, FORMAT))
        assert isinstance(await _claim(store, "new"), Claimed)


async def test_of_many_that_claim_a_turn_at_once_one_gets_it(postgres: str):
    async with _opened(postgres) as store, _opened(postgres) as other:
        await _insert(store, _row("gone"))
        for number in range(20):
            await store.write(lambda tx, name=f"i{number}": leases.take(tx, name, "a:1", 60.0))
        outcomes = await asyncio.gather(*(_claim(store if number % 2 else other, f"i{number}") for number in range(20)))

        winners = [outcome for outcome in outcomes if isinstance(outcome, Claimed)]
        assert 1 == len(winners)
        losers = {outcome.instance_id for outcome in outcomes if isinstance(outcome, Owner)}
        assert {winners[0].row.owner} == losers


async def test_a_turn_that_was_let_go_of_is_claimed_at_once_and_said_to_be(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("old"))
        await store.write(lambda tx: leases.take(tx, "old", "a:1", 60.0))
        await store.write(lambda tx: ownership.release(tx, "t", TURN, epoch=1))
        claimed = await _claim(store, "new")

        assert isinstance(claimed, Claimed)
        assert claimed.released


async def test_a_living_owner_is_passed_over_only_in_the_epoch_that_was_silent(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("old"))
        await store.write(lambda tx: leases.take(tx, "old", "a:1", 60.0))
        assert isinstance(await _claim(store, "new", over_epoch=7), Owner)
        assert isinstance(await _claim(store, "new", over_epoch=1), Claimed)


async def test_a_turn_of_a_later_version_is_left_to_that_version(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("gone", format=FORMAT + 1))
        assert [] == await store.read(lambda tx: ownership.abandoned(tx, FORMAT))
        with pytest.raises(NotOwner):
            await _claim(store, "new")


async def test_an_inbox_is_its_owners_and_anybodys_when_there_is_none(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("old"))
        await store.write(lambda tx: leases.take(tx, "old", "a:1", 60.0))
        for _ in range(2):
            await store.write(lambda tx: inbox.add(tx, "t", TURN, Entry("e", CANCEL, b"x")))
        assert [Entry("e", CANCEL, b"x")] == await store.read(lambda tx: inbox.of_turn(tx, "t", TURN))
        assert [("t", TURN)] == await store.read(lambda tx: inbox.waiting(tx, "old"))
        assert [] == await store.read(lambda tx: inbox.waiting(tx, "other"))
        await store.write(lambda tx: leases.end(tx, "old"))
        assert [("t", TURN)] == await store.read(lambda tx: inbox.waiting(tx, "other"))


async def test_a_lease_is_dark_before_it_ends_lost_after_and_begun_anew_under_another_name(own_server: Postgres):
    with own_server.database() as url:
        async with _opened(url) as store:
            lease = Lease(store, SETTINGS, instance_id="one", address="a:1", exclusive=False)
            lost = asyncio.Event()
            await lease.take()
            keeping = asyncio.create_task(lease.run(lost=lost.set, lit_again=lambda: None))
            try:
                await asyncio.sleep(2.5)  # longer than a lease that is not renewed
                assert lease.good
                assert not lost.is_set()
                await asyncio.to_thread(own_server.kill)
                while lease.good:
                    await asyncio.sleep(0.01)
                assert not lost.is_set(), "it was lost before it was dark"
                await lost.wait()
                assert not lease.good
                await asyncio.to_thread(own_server.start)
                await lease.lit()

                assert "one" != lease.instance_id
                assert await store.read(lambda tx: leases.address_of(tx, "one")) is None
                assert "a:1" == await store.read(lambda tx: leases.address_of(tx, lease.instance_id))
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)


async def test_who_goes_on_under_another_name_leaves_no_lease_of_the_last_one(postgres: str):
    async with _opened(postgres) as store:
        lease = Lease(store, SETTINGS, instance_id="one", address="a:1", exclusive=False)
        await lease.take()
        # As it is where the clock of the database was an hour ahead, and was set right.
        await store.write(lambda tx: leases.take(tx, "one", "a:1", 3600.0))
        lease._lose(lambda: None)
        await lease.take()

        assert await store.read(lambda tx: leases.address_of(tx, "one")) is None
        assert "a:1" == await store.read(lambda tx: leases.address_of(tx, lease.instance_id))


class _NoQueue:
    async def begin(self, tx: object, tenant: str, session_id: str) -> None:
        return None

    def begun(self, tenant: str, what: object) -> None:
        raise AssertionError


async def _lit() -> None:
    return


def _writer(store: Store, log: TurnLog, epoch: int = 1, *, held: bytes | None = None) -> TurnWriter:
    return TurnWriter(store, log, "t", f"sess of {TURN}", epoch, lit=_lit, successor=_NoQueue(), held=held)


async def test_a_turn_writes_no_further_while_a_mebibyte_of_it_is_not_stored(own_server: Postgres):
    with own_server.database() as url:
        async with _opened(url) as store:
            await _insert(store, _row("me"))
            log = TurnLog(TURN)
            writer = _writer(store, log)
            await writer.commit([started(), step_started("s1")])
            await asyncio.to_thread(own_server.kill)
            writer.delta("s1", 1, event_pb2.DELTA_PART_ANSWER, "x" * (UNSTORED_BYTES // 2))
            await writer.room()
            writer.delta("s1", 1, event_pb2.DELTA_PART_ANSWER, "x" * (UNSTORED_BYTES // 2 + 1))
            waiting = asyncio.create_task(writer.room())
            done, _ = await asyncio.wait({waiting}, timeout=3)
            assert not done
            await asyncio.to_thread(own_server.start)
            await waiting
            await writer.close()

            stored = await store.read(lambda tx: events.of_turn(tx, "t", TURN))
            assert UNSTORED_BYTES + 1 == sum(len(event.step_delta.text) for event in stored)
            assert max(event.ByteSize() for event in stored) <= 256 * 1024


async def test_who_has_lost_a_turn_stores_nothing_of_it(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("me"))
        log = TurnLog(TURN)
        writer = _writer(store, log)
        await writer.commit([started()])
        assert isinstance(await _claim(store, "new"), Claimed)
        with pytest.raises(NotOwner):
            await writer.commit([step_started("s1")])

        assert 1 == log.last_sequence
        assert 1 == len(await store.read(lambda tx: events.of_turn(tx, "t", TURN)))


async def test_given_results_are_kept_until_the_last_of_them_stands_in_the_log_as_it_passed(postgres: str):
    async with _opened(postgres) as store:
        await _insert(store, _row("me"))
        kept = results_body({call: message_pb2.ToolResult(call_id=call, content="raw") for call in ("c1", "c2")})
        writer = _writer(store, TurnLog(TURN), held=kept)

        async def held(*drafts: event_pb2.StepEvent) -> bytes | None:
            await writer.commit(drafts)
            row = await store.read(lambda tx: turns.get(tx, "t", TURN))
            assert row is not None
            return row.held_input

        calls = [message_pb2.ToolCall(call_id=call, name="f") for call in ("c1", "c2", "c3")]
        plan = event_pb2.ToolExecutionPlan(call_ids=[call.call_id for call in calls], inference_step_id="s1")
        tools = event_pb2.StepStarted(type=step_pb2.STEP_TYPE_TOOL_EXECUTION, tool_execution=plan)
        called = [started(), step_started("s1"), inference_completed("s1", *calls)]
        assert await held(*called, draft(TURN, "step_started", tools, "s2")) is None
        given = [turn_pb2.TurnInput(tool_result=message_pb2.ToolResult(call_id=call)) for call in ("c1", "c2")]
        received = event_pb2.TurnInputReceived(inputs=given, held_call_ids=["c1", "c2"])
        assert kept == await held(draft(TURN, "turn_input_received", received))
        point = event_pb2.ShieldCallPlan(point=shield_pb2.SHIELD_POINT_TOOL_RESULT, call_id="c1")
        judging = event_pb2.StepStarted(type=step_pb2.STEP_TYPE_SHIELD_CALL, shield_call=point)
        judged = event_pb2.StepCompleted(shield_call=event_pb2.ShieldCallResult())
        assert kept == await held(draft(TURN, "step_started", judging, "s3"))
        assert kept == await held(draft(TURN, "step_completed", judged, "s3"))
        for call, left in (("c1", kept), ("c3", kept), ("c2", None)):
            result = event_pb2.ToolCallCompleted(result=message_pb2.ToolResult(call_id=call, content="passed"))
            assert left == await held(draft(TURN, "tool_call_completed", result, "s2")), call
        await writer.close()


async def test_what_waits_for_the_database_is_given_up_with_the_turn(own_server: Postgres):
    with own_server.database() as url:
        async with _opened(url) as store:
            await _insert(store, _row("me"))
            writer = _writer(store, TurnLog(TURN))
            await writer.commit([started()])
            await asyncio.to_thread(own_server.kill)
            committing = asyncio.create_task(writer.commit([step_started("s1")]))
            with pytest.raises(StoreUnavailable):
                await store.read(lambda tx: turns.get(tx, "t", TURN))
            writer.give_up()
            with pytest.raises(NotOwner):
                await committing
            await asyncio.to_thread(own_server.start)
            await writer.close()
            assert 1 == len(await store.read(lambda tx: events.of_turn(tx, "t", TURN)))
