"""The events of a turn as server-sent events: whole, resumed anywhere, at the reader's pace."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format

from tests.gateway.edge import Edge, running_edge
from turnwire.agent.v1 import agent_service_pb2, event_pb2
from turnwire.common.v1 import message_pb2
from turnwire.fold import TurnFold
from turnwire_gateway.event_json import message_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

pytestmark = pytest.mark.mesh

AGENT = "turnwire.agent.v1.AgentService"
RULES = [
    {"contains": "slow", "text": "word " * 200, "tokens_per_second": 150},
    {"contains": "hang", "text": "one two three", "hang": True},
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Köln"}}]},
    {"contains": "ä", "text": "Grüße an die Welt \U0001f600"},
]


class Frame:
    """One server-sent event."""

    def __init__(self, text: str) -> None:
        lines = [line.partition(": ") for line in text.split("\n") if not line.startswith(":")]
        self.fields = {name: value for name, _, value in lines}

    @property
    def event(self) -> event_pb2.StepEvent:
        return json_format.Parse(self.fields["data"], event_pb2.StepEvent())


@asynccontextmanager
async def reading(
    edge: Edge, turn_id: str, *, headers: Mapping[str, str] | None = None, **query: str
) -> AsyncGenerator[tuple[Any, AsyncIterator[Frame]]]:
    async with edge.http.get(f"{edge.url}/v1/turns/{turn_id}/events", headers=headers, params=query) as response:

        async def frames() -> AsyncIterator[Frame]:
            rest = ""
            async for piece in response.content.iter_any():
                rest += piece.decode()
                *whole, rest = rest.split("\n\n")
                for text in whole:
                    yield Frame(text)
            assert "" == rest

        yield response, frames()


async def events_of(edge: Edge, turn_id: str, after: int = 0) -> list[event_pb2.StepEvent]:
    found: list[event_pb2.StepEvent] = []
    async with reading(edge, turn_id, headers={"last-event-id": str(after)}) as (response, frames):
        if response.status == 204:
            return []
        assert 200 == response.status
        async for frame in frames:
            if "data" in frame.fields:
                event = frame.event
                assert (str(event.sequence), event.WhichOneof("payload")) == (frame.fields["id"], frame.fields["event"])
                found.append(event)
    return found


def folded(turn_id: str, events: list[event_pb2.StepEvent]) -> Any:
    fold = TurnFold(turn_id)
    for event in events:
        fold.apply(event)
    return fold.turn


async def begun(edge: Edge, text: str, **request: Any) -> str:
    """Begins a turn and lets it go; returns its id once it has an event."""
    async with edge.mesh.client() as client:
        session = await client.create_session("assistant")
        async with client.run_turn(session.session_id, text, **request) as stream:
            async for _ in stream:
                return stream.turn_id
    raise AssertionError("a turn has events")


async def ended(edge: Edge, text: str) -> str:
    async with edge.mesh.client() as client:
        session = await client.create_session("assistant")
        stream = client.run_turn(session.session_id, text)
        await stream.result()
        return stream.turn_id


async def test_a_turn_folds_alike_over_grpc_connect_grpc_web_and_sse():
    async with running_edge(rules=RULES) as edge:
        turn_id = await ended(edge, "say ä")
        watch = agent_service_pb2.WatchTurnRequest(turn_id=turn_id)
        sent, as_json = watch.SerializeToString(), json_format.MessageToJson(watch).encode()
        name = f"{AGENT}/WatchTurn"
        async with edge.mesh.client() as client:
            expected = await client.get_turn(turn_id)
        folds = {
            "grpc": (await edge.grpc(name, sent)).messages,
            "connect": (await edge.connect(name, sent)).messages,
            "connect json": (await edge.connect(name, as_json, "json")).messages,
            "grpc-web": (await edge.grpc_web(name, sent)).messages,
            "grpc-web-text": (await edge.grpc_web(name, sent, text=True)).messages,
            "sse": await events_of(edge, turn_id),
        }
    assert "Grüße an die Welt \U0001f600" == expected.output.parts[0].text
    assert dict.fromkeys(folds, expected) == {key: folded(turn_id, events) for key, events in folds.items()}  # pyright: ignore[reportArgumentType] - all of them are events


async def test_a_stream_cut_anywhere_is_resumed_after_the_last_number():
    chance = random.Random(4)
    async with running_edge(rules=RULES) as edge:
        turn_id = await begun(edge, "slow")
        seen: list[event_pb2.StepEvent] = []
        cuts = 0
        while not seen or seen[-1].WhichOneof("payload") != "turn_completed":
            last = seen[-1].sequence if seen else 0
            left = chance.randrange(1, 12)
            async with reading(edge, turn_id, headers={"last-event-id": str(last)}) as (response, frames):
                assert 200 == response.status
                async for frame in frames:
                    if "data" in frame.fields:
                        seen.append(frame.event)
                        left -= 1
                    if not left:
                        cuts += 1
                        break
        assert cuts >= 5
        async with edge.mesh.client() as client:
            assert await client.get_turn(turn_id) == folded(turn_id, seen)


@pytest.mark.parametrize("after", ["header", "query", "both"])
async def test_the_position_comes_by_header_or_query_and_the_header_goes_before(after: str):
    async with running_edge(rules=RULES) as edge:
        turn_id = await ended(edge, "say ä")
        whole = await events_of(edge, turn_id)
        middle = whole[len(whole) // 2].sequence
        headers = {"last-event-id": str(middle)} if after != "query" else None
        query = {"header": {}, "query": {"after": str(middle)}, "both": {"after": "1"}}[after]
        async with reading(edge, turn_id, headers=headers, **query) as (_, frames):
            got = [frame.event.sequence async for frame in frames if "data" in frame.fields]
        assert [event.sequence for event in whole if event.sequence > middle] == got


async def test_a_turn_that_is_over_tells_a_returning_browser_to_stay_away():
    async with running_edge(rules=RULES) as edge:
        turn_id = await ended(edge, "say ä")
        last = (await events_of(edge, turn_id))[-1]
        assert "turn_completed" == last.WhichOneof("payload")
        async with reading(edge, turn_id, headers={"last-event-id": str(last.sequence)}) as (response, _):
            assert 204 == response.status


async def test_a_quiet_turn_has_its_heartbeats():
    async with running_edge(rules=RULES, agent={"heartbeat_seconds": 0.2}) as edge:
        turn_id = await begun(edge, "hang")
        async with reading(edge, turn_id) as (response, frames):
            assert "text/event-stream; charset=utf-8" == response.headers["content-type"]
            beats = 0
            async for frame in frames:
                if frame.fields.get("event") == "heartbeat":
                    beats += 1
                    assert str(frame.event.sequence) == frame.fields["id"]
                if beats == 3:
                    break


async def test_a_turn_that_waits_is_followed_only_when_asked():
    tools = [{"function": {"definition": {"name": "get_weather", "parametersJsonSchema": '{"type": "object"}'}}}]
    async with running_edge(rules=RULES, agent={"heartbeat_seconds": 0.2}) as edge:
        agent = {"config": {"model": "scripted", "tools": tools}, "name": "w"}
        made: Any = (await edge.connect(f"{AGENT}/CreateAgent", json.dumps(agent).encode(), "json")).messages[0]
        async with edge.mesh.client() as client:
            session = await client.create_session(made.agent.agent_id)
            turn_id = (await client.run_turn(session.session_id, "weather").result()).turn_id
        events = await events_of(edge, turn_id)
        assert "turn_awaiting_input" == events[-1].WhichOneof("payload")
        query: dict[str, Any] = {"after": str(events[-1].sequence), "follow_pauses": "true"}
        async with reading(edge, turn_id, **query) as (response, frames):
            assert 200 == response.status
            names: list[str] = []
            async for frame in frames:
                name = frame.fields.get("event", "")
                if name == "heartbeat" and "heartbeat" not in names:
                    call_id = events[-1].turn_awaiting_input.awaited_input.requests[0].call.call_id
                    result = message_pb2.ToolResult(call_id=call_id, name="get_weather", content="sun")
                    async with edge.mesh.client() as client:
                        await client.submit_turn_input(turn_id, [result])
                names.append(name)
            assert "turn_completed" == names[-1]


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("turn_none/events", 404, "turn_none"),
        ("turn_none/events?after=x", 400, "after is the number of an event"),
        ("turn_none/events?after=-1", 400, "after is the number of an event"),
        ("turn_none/events?follow_pauses=yes", 400, "follow_pauses is `true` or `false`"),
        ("turn_none/events?from=3", 400, "from is no parameter of this route"),
    ],
)
async def test_what_cannot_be_watched_is_refused_with_why(path: str, status: int, told: str):
    async with running_edge() as edge:
        async with edge.http.get(f"{edge.url}/v1/turns/{path}") as response:
            assert status == response.status
            assert told in (await response.json())["message"]


async def test_a_number_beyond_the_turn_is_out_of_range():
    async with running_edge(rules=RULES) as edge:
        turn_id = await ended(edge, "say ä")
        async with edge.http.get(f"{edge.url}/v1/turns/{turn_id}/events?after=100000") as response:
            assert (400, "out_of_range") == (response.status, (await response.json())["code"])


async def test_a_restart_of_the_agent_service_ends_the_stream_and_nothing_is_lost():
    async with running_edge(rules=RULES, agent={"drain_seconds": 0.2}) as edge:
        turn_id = await begun(edge, "slow")
        seen: list[event_pb2.StepEvent] = []
        async with reading(edge, turn_id) as (_, frames):
            async for frame in frames:
                if "data" in frame.fields:
                    seen.append(frame.event)
                if len(seen) == 5:
                    await edge.mesh.stop("agent")
        assert "turn_completed" != seen[-1].WhichOneof("payload")
        await edge.mesh.start("agent")
        back = False
        while not back:  # its channel looks again after a moment
            async with reading(edge, turn_id) as (response, _):
                back = response.status == 200
                assert response.status in {200, 503}
        seen += await events_of(edge, turn_id, seen[-1].sequence)
        async with edge.mesh.client() as client:
            assert await client.get_turn(turn_id) == folded(turn_id, seen)


async def test_a_gateway_that_ends_tells_its_streams_to_resume_elsewhere():
    async with running_edge(rules=RULES) as edge:
        turn_id = await begun(edge, "hang")
        async with reading(edge, turn_id) as (_, frames):
            names: list[str] = []
            draining: asyncio.Task[None] | None = None
            async for frame in frames:
                names.append(frame.fields.get("event", ""))
                if names[-1] == "step_delta" and draining is None:
                    draining = asyncio.create_task(edge.gateway.drain())
            assert draining is not None
            await draining
        assert "turn_completed" not in names


def _delta(chance: random.Random) -> event_pb2.StepEvent:
    event = event_pb2.StepEvent(
        first_sequence=chance.choice([0, 1, 2**53 + 1]),
        sequence=chance.choice([0, 7, 2**62]),
        turn_id=chance.choice(["", "turn_1", 'a"b']),
        step_id=chance.choice(["", "step_ä"]),
        format=chance.choice([0, 1]),
    )
    if chance.random() < 0.8:
        event.event_time.FromNanoseconds(chance.choice([0, 1, 1_790_000_000_123_456_789, 1_790_000_000_000_000_000]))
    delta = event.step_delta
    delta.SetInParent()
    delta.attempt = chance.choice([0, 1, 3])
    delta.part = chance.choice([0, 1, 2, 3, 4, 99])  # pyright: ignore[reportAttributeAccessIssue] - a newer number
    delta.call_id = chance.choice(["", "call_1"])
    delta.offset = chance.choice([0, 1, 17, 2**53 + 1])
    delta.text = chance.choice(["", "Grüße", '"\\\n\r\t\x00\x1f', "\U0001f600\u2028", "</script>"])
    delta.tool_name = chance.choice(["", "get_weather"])
    delta.parse_status = chance.choice([0, 3, 42])  # pyright: ignore[reportAttributeAccessIssue] - a newer number
    return event


def test_the_fast_way_writes_deltas_as_the_library_does():
    chance = random.Random(11)
    for _ in range(2_000):
        event = _delta(chance)
        fast = message_json(event)
        assert json_format.MessageToDict(event) == json.loads(fast)
        assert b"\n" not in fast
        assert event == json_format.Parse(fast, event_pb2.StepEvent())
