"""Streams that are cut, delayed, lost and silent: the turn comes whole, or the error says why not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.client.agents import Abort, Hang, completed, heartbeat, progress, started, told
from tests.client.proxy import Proxy, proxied
from tests.mesh.asking import session_of, until
from turnwire.agent.live.acceptance import Acceptance
from turnwire.agent.v1 import event_pb2, turn_pb2
from turnwire.client.resumption import Silence
from turnwire.errors import Internal, NotFound, Unavailable
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.client import TurnStream

RULES = [
    {"contains": "long", "tokens": 100, "tokens_per_second": 250},
    {"contains": "hang", "text": "half an answer", "hang": True},
]
WHOLE = "".join(f"w{number} " for number in range(1, 101))


def check_resumed(events: Sequence[event_pb2.StepEvent]) -> None:
    """Asserts that nothing is missing and nothing comes twice; after a cut, neighbours may have been merged."""
    last = 0
    for event in events:
        assert event.first_sequence <= last + 1 <= event.sequence, f"a gap before {event}"
        last = event.sequence
    assert "turn_completed" == events[-1].WhichOneof("payload")


async def _read(stream: TurnStream, at: dict[int, Any]) -> list[event_pb2.StepEvent]:
    """Reads to the end; after so many events something is done."""
    events: list[event_pb2.StepEvent] = []
    async with stream:
        async for event in stream:
            events.append(event)
            if len(events) in at:
                at[len(events)]()
    return events


async def test_a_stream_that_is_cut_again_and_again_comes_whole_and_once():
    async with running_mesh(rules=RULES) as mesh, proxied(mesh.address("agent")) as proxy:
        async with mesh.client(address=proxy.address) as client:
            stream = client.run_turn(await session_of(client), "a long story")
            events = await _read(stream, dict.fromkeys((1, 2, 5, 20, 21, 60), proxy.cut))

            check_resumed(events)
            assert WHOLE == stream.text
            assert stream.turn == await client.get_turn(stream.turn_id)
            assert stream.reconnects >= 3
            assert proxy.accepted >= 4


async def test_a_slow_network_only_makes_a_turn_late():
    async with running_mesh(rules=RULES) as mesh, proxied(mesh.address("agent")) as proxy:
        async with mesh.client(address=proxy.address) as client:
            session = await session_of(client)
            proxy.delay = 0.02
            stream = client.run_turn(session, "a long story")
            check_resumed(await _read(stream, {}))
            assert (WHOLE, 0) == (stream.text, stream.reconnects)


async def test_a_turn_whose_acceptance_was_lost_is_run_once():
    async with running_mesh(rules=RULES) as mesh, proxied(mesh.address("agent")) as proxy:
        async with mesh.client(address=proxy.address) as client, mesh.client() as beside:
            session = await session_of(client)
            # The request goes through, the answer does not come back.
            proxy.delay = 3600
            stream = client.run_turn(session, "a long story")
            reading = asyncio.create_task(_read(stream, {}))

            async def accepted() -> bool:
                return len((await beside.list_turns(session_id=session)).turns) == 1

            await until(accepted)
            proxy.delay = 0
            proxy.cut()
            check_resumed(await reading)
            assert WHOLE == stream.text
            assert 1 == len((await beside.list_turns(session_id=session)).turns)


async def test_a_connection_that_dies_silently_is_given_up_and_replaced():
    async with running_mesh(rules=RULES) as mesh, proxied(mesh.address("agent")) as proxy:
        async with mesh.client(address=proxy.address, keepalive_seconds=1) as client:
            session = await session_of(client)
            stream = client.run_turn(session, "a long story", stall_timeout=None)
            reading = asyncio.create_task(_read(stream, {5: proxy.hold}))
            before = proxy.accepted
            await _until(lambda: proxy.accepted > before)
            proxy.cut()
            proxy.release()
            check_resumed(await reading)
            assert WHOLE == stream.text
            assert stream.reconnects >= 1


async def test_a_server_away_for_longer_than_resume_timeout_is_an_error_that_names_it():
    async with running_mesh(rules=RULES) as mesh, proxied(mesh.address("agent")) as proxy:
        async with mesh.client(address=proxy.address) as client:
            stream = client.run_turn(await session_of(client), "please hang", resume_timeout=0.4)
            loop = asyncio.get_running_loop()
            cut_at: list[float] = []

            def away() -> None:
                proxy.refuses = True
                proxy.cut()
                cut_at.append(loop.time())

            with pytest.raises(Unavailable) as raised:
                await _read(stream, {3: away})
            assert "agent" == raised.value.metadata["service"]
            assert loop.time() - cut_at[0] < 5
            assert stream.reconnects >= 1

            # Nothing is lost: the same turn is watched from where the stream ended.
            proxy.refuses = False
            await _until_reached(client)
            assert turn_pb2.TURN_STATUS_RUNNING == (await client.get_turn(stream.turn_id)).status
            await client.cancel_turn(stream.turn_id)
            rest = [event async for event in client.watch_turn(stream.turn_id, after_sequence=stream.last_sequence)]
            assert rest[0].first_sequence <= stream.last_sequence + 1 <= rest[0].sequence
            assert "turn_cancelled" == rest[-1].WhichOneof("payload")


async def test_the_time_to_resume_begins_anew_with_every_sign_of_life():
    # Each stream gives a heartbeat and breaks: far more of them than fit into resume_timeout without one.
    broken = [heartbeat(1), Abort(grpc.StatusCode.UNAVAILABLE)]
    streams = [[started(), Abort(grpc.StatusCode.UNAVAILABLE)], *[broken] * 12, [completed(2)]]
    async with told(*streams) as (agent, client):
        stream = client.run_turn("sess_1", "hello", resume_timeout=0.2)
        assert turn_pb2.TURN_STATUS_COMPLETED == (await stream.result()).status
        assert (1, 13) == (len(agent.run), len(agent.watched))


async def test_a_stream_without_heartbeats_counts_as_cut():
    async with told([started(), Hang()], [Hang()], [heartbeat(1), progress(2), completed(3)]) as (agent, client):
        stream = client.run_turn("sess_1", "hello", stall_timeout=0.1)
        kinds = [event.WhichOneof("payload") async for event in stream]

        assert ["turn_started", "step_progress", "turn_completed"] == kinds
        assert 2 == stream.reconnects
        assert [1, 1] == [request.after_sequence for request in agent.watched]


async def test_a_service_that_stays_silent_is_an_error_that_says_what_to_set():
    async with told([started(), Hang()], [Hang()]) as (_, client):
        with pytest.raises(Unavailable, match=r"silent for 0\.05 s.*heartbeat_seconds"):
            await client.run_turn("sess_1", "hello", stall_timeout=0.05, resume_timeout=0.2).result()


async def test_heartbeats_keep_a_quiet_stream():
    async with running_mesh(rules=RULES, agent={"heartbeat_seconds": 0.05}) as mesh, mesh.client() as client:
        session = await session_of(client)
        async with client.run_turn(session, "please hang", heartbeats=True, stall_timeout=1) as stream:
            beats = 0
            async for event in stream:
                beats += event.WhichOneof("payload") == "heartbeat"
                if beats == 40:
                    break
        assert 0 == stream.reconnects


async def test_a_loop_that_was_blocked_makes_no_stream_look_silent():
    cancelled: list[bool] = []

    class Call:
        def cancel(self) -> None:
            cancelled.append(True)

    silence = Silence(Call(), 0.2)
    silence.begins()
    time.sleep(1.0)  # the program itself is busy for five times the limit
    await asyncio.sleep(0.06)
    assert [] == cancelled
    silence.close()


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
async def test_what_a_proxy_says_of_a_broken_connection_is_resumed(code: grpc.StatusCode):
    async with told([started(), Abort(code)], [completed(2)]) as (_, client):
        stream = client.run_turn("sess_1", "hello")
        assert turn_pb2.TURN_STATUS_COMPLETED == (await stream.result()).status
        assert 1 == stream.reconnects


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED])
async def test_what_will_not_pass_is_raised_at_once(code: grpc.StatusCode):
    async with told([started(), Abort(code)], [completed(2)]) as (agent, client):
        with pytest.raises(Exception, match="made by the test"):
            await client.run_turn("sess_1", "hello").result()
        assert [] == agent.watched


async def test_an_error_of_the_service_itself_is_raised_with_its_class():
    async with running_mesh() as mesh, mesh.client() as client:
        with pytest.raises(NotFound) as raised:
            await client.run_turn("sess_nowhere", "hello").result()
        assert "sess_nowhere" == raised.value.metadata["resource_name"]


async def test_a_stream_that_a_proxy_ended_well_in_the_middle_is_resumed():
    async with told([started(), progress(2)], [completed(3)]) as (agent, client):
        stream = client.run_turn("sess_1", "hello")
        assert turn_pb2.TURN_STATUS_COMPLETED == (await stream.result()).status
        assert [2] == [request.after_sequence for request in agent.watched]


async def test_a_gap_is_read_again_and_never_shown():
    async with told([started(), progress(5), progress(6)], [progress(2), progress(4, first=3), completed(5)]) as (
        agent,
        client,
    ):
        stream = client.run_turn("sess_1", "hello")
        events = [event async for event in stream]

        check_resumed(events)
        assert [1, 2, 4, 5] == [event.sequence for event in events]
        assert [1] == [request.after_sequence for request in agent.watched]


async def test_a_gap_in_a_stream_from_the_middle_is_read_again_too():
    async with told([progress(8), progress(11)], [progress(9), completed(10)]) as (agent, client):
        events = [event async for event in client.watch_turn("turn_1", after_sequence=7)]
        assert [8, 9, 10] == [event.sequence for event in events]
        assert [7, 8] == [request.after_sequence for request in agent.watched]


async def test_a_service_that_never_fills_a_gap_is_an_error():
    async with told([started(), progress(5)], [progress(5)]) as (_, client):
        with pytest.raises(Unavailable, match="gap"):
            await client.run_turn("sess_1", "hello", resume_timeout=0.2).result()


async def test_events_of_a_later_version_are_passed_on_and_change_nothing():
    unknown = progress(2)
    unknown.ClearField("step_progress")
    # A payload of number 1000 that this version has not, as bytes: tag, length, content.
    later = event_pb2.StepEvent.FromString(unknown.SerializeToString() + b"\xc2\x3e\x02\x08\x01")
    strange = event_pb2.StepEvent(first_sequence=4, sequence=4, turn_id="turn_1", step_id="step_1")
    strange.step_delta.part = 999  # pyright: ignore[reportAttributeAccessIssue] - a number of a later version
    strange.step_delta.text = "?"
    step = event_pb2.StepEvent(first_sequence=3, sequence=3, turn_id="turn_1", step_id="step_1")
    step.step_started.type = 998  # pyright: ignore[reportAttributeAccessIssue] - a number of a later version
    async with told([started(), later, step, strange, completed(5)]) as (_, client):
        stream = client.run_turn("sess_1", "hello")
        events = [event async for event in stream]

        assert [1, 2, 3, 4, 5] == [event.sequence for event in events]
        assert events[1].WhichOneof("payload") is None
        assert later.SerializeToString() == events[1].SerializeToString()
        assert turn_pb2.TURN_STATUS_COMPLETED == stream.turn.status
        assert "" == stream.text


async def test_a_stream_from_the_middle_ends_with_the_turn_and_knows_all_of_it():
    async with running_mesh(rules=RULES) as mesh, mesh.client() as client:
        session = await session_of(client)
        turn = await client.run_turn(session, "a long story").result()
        middle = client.watch_turn(turn.turn_id, after_sequence=turn.last_sequence // 2)
        events = [event async for event in middle]

        assert events[0].first_sequence <= turn.last_sequence // 2 + 1 <= events[0].sequence
        assert turn.last_sequence == middle.last_sequence
        assert not middle.whole
        assert turn == await middle.result()
        assert [] == [event async for event in client.watch_turn(turn.turn_id, after_sequence=turn.last_sequence)]


async def test_each_stream_is_logged_under_an_id_that_the_caller_knows():
    async with told([started(), Abort(grpc.StatusCode.UNAVAILABLE)], [completed(2)]) as (agent, client):
        stream = client.run_turn("sess_1", "hello")
        first = ""
        async for _ in stream:
            first = first or stream.request_id
        assert [first, stream.request_id] == agent.request_ids
        assert first != stream.request_id


async def test_a_defect_of_the_service_is_raised_and_not_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    async with running_mesh() as mesh, mesh.client() as client:
        session = await session_of(client)

        async def broken(*_: object) -> object:
            raise ZeroDivisionError

        monkeypatch.setattr(Acceptance, "accept", broken)
        stream = client.run_turn(session, "hello")
        with pytest.raises(Internal) as raised:
            await stream.result()
        assert stream.request_id == raised.value.metadata["request_id"]
        assert 0 == stream.reconnects


async def _until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def _until_reached(client: Any) -> None:
    async def reached() -> bool:
        return bool((await client.server_info("agent")).version)

    await until(reached)


async def test_the_proxy_passes_everything_on():
    async with running_mesh() as mesh, proxied(mesh.address("agent")) as proxy:
        assert isinstance(proxy, Proxy)
        async with mesh.client(address=proxy.address) as client:
            turn = await client.run_turn(await session_of(client), "hello").result()
            assert "hello" == turn.output.parts[0].text
