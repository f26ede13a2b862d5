"""Callers that leave, and callers that read slowly."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway.edge import HEAD, Edge, running_edge
from turnwire.agent.v1 import agent_service_pb2
from turnwire.client.client import user_message
from turnwire.inference.v1 import inference_service_pb2
from turnwire.testing.mesh import free_port_offset, running_mesh
from turnwire_gateway.bodies import Streamed
from turnwire_gateway.serving import gateway_serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from starlette.types import Message

pytestmark = pytest.mark.mesh

CHAT = "turnwire.inference.v1.InferenceService/ChatCompletion"
WATCH = "turnwire.agent.v1.AgentService/WatchTurn"
RULES = [{"contains": "hang", "text": "one two three", "hang": True}]


async def _open_calls(edge: Edge, method: str) -> float:
    """How many calls of a method its service has open, as it tells Prometheus."""
    service = method.split(".")[1]
    address = f"http://127.0.0.1:{edge.mesh.settings.port(service) + 200}/metrics"
    # On a connection of its own: its server serves one after the other.
    async with aiohttp.ClientSession() as http, http.get(address) as response:
        for line in (await response.text()).splitlines():
            if line.startswith(f'rpc_server_open_calls{{rpc_method="{method}"}}'):
                return float(line.split()[-1])
    return 0.0


async def _until_open(edge: Edge, method: str, count: float) -> None:
    while await _open_calls(edge, method) != count:
        await asyncio.sleep(0.02)


def _chat() -> bytes:
    request = inference_service_pb2.ChatCompletionRequest(model="scripted", messages=[user_message("hang")])
    return request.SerializeToString()


def _enveloped(data: bytes) -> bytes:
    return HEAD.pack(0, len(data)) + data


async def _hanging_turn(edge: Edge) -> str:
    async with edge.mesh.client() as client:
        session = await client.create_session("assistant")
        async with client.run_turn(session.session_id, "hang") as stream:
            async for event in stream:
                if event.WhichOneof("payload") == "step_delta":
                    break
        return stream.turn_id


def _completion(model: str, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hang"}]
    body = json.dumps({"model": model, "messages": messages, "stream": stream}).encode()
    return {"path": "v1/chat/completions", "body": body, "kind": "application/json"}


@pytest.mark.parametrize(
    ("request_", "method"),
    [
        ({"path": CHAT, "body": _enveloped(_chat()), "kind": "application/connect+proto"}, CHAT),
        ({"path": CHAT, "body": _enveloped(_chat()), "kind": "application/grpc-web+proto"}, CHAT),
        (_completion("scripted", stream=True), CHAT),
        (_completion("scripted", stream=False), CHAT),
        (_completion("agent:assistant", stream=True), "turnwire.agent.v1.AgentService/RunTurn"),
        (_completion("agent:assistant", stream=False), "turnwire.agent.v1.AgentService/RunTurn"),
    ],
    ids=["connect", "grpc-web", "model-stream", "model", "agent-stream", "agent"],
)
async def test_a_caller_that_leaves_ends_the_call_of_the_service(request_: dict[str, Any], method: str):
    async with running_edge(rules=RULES) as edge:

        async def ask() -> None:
            async with edge.post(request_["path"], request_["body"], request_["kind"]) as response:
                await response.read()

        asking = asyncio.create_task(ask())
        await _until_open(edge, method, 1)
        asking.cancel()
        await _until_open(edge, method, 0)
        # A turn of a completion belongs to its request: its model is stopped with it.
        await _until_open(edge, CHAT, 0)


async def test_a_reader_of_a_turn_that_leaves_ends_its_watching_and_not_the_turn():
    async with running_edge(rules=RULES) as edge:
        turn_id = await _hanging_turn(edge)
        await _until_open(edge, WATCH, 0)
        for path in (f"v1/turns/{turn_id}/events", f"v1/turns/{turn_id}/events?after=3"):
            async with edge.http.get(f"{edge.url}/{path}") as response:
                await response.content.readany()
                assert 1 == await _open_calls(edge, WATCH)
            await _until_open(edge, WATCH, 0)
        assert 1 == await _open_calls(edge, CHAT)


async def test_a_gateway_that_is_closed_leaves_no_call_open():
    services = ("inference", "agent")
    async with running_mesh(rules=RULES, listen={"port_offset": free_port_offset([*services, "gateway"])}) as mesh:
        async with aiohttp.ClientSession() as http, AsyncExitStack() as closing:
            gateway = await closing.enter_async_context(gateway_serving(mesh.settings, environ={}))
            edge = Edge(mesh, gateway, f"http://127.0.0.1:{mesh.settings.port('gateway')}", http)
            request = agent_service_pb2.WatchTurnRequest(turn_id=await _hanging_turn(edge), follow_pauses=True)

            async def watch() -> None:
                sent = _enveloped(request.SerializeToString())
                async with edge.post(WATCH, sent, "application/connect+proto") as response:
                    await response.read()

            watching = asyncio.create_task(watch())
            await _until_open(edge, WATCH, 1)
            await closing.aclose()
            await _until_open(edge, WATCH, 0)
            with pytest.raises(aiohttp.ClientError):
                await watching


async def test_for_a_reader_that_stops_reading_the_system_takes_little_of_a_long_turn():
    rules = [{"contains": "long", "pieces": ["x" * 16_000] * 128}]
    async with running_edge(rules=rules) as edge, edge.mesh.client() as client:
        session = await client.create_session("assistant")
        turn = await client.run_turn(session.session_id, "long").result()
        path = f"/v1/turns/{turn.turn_id}/events"
        with socket.socket() as stopped:
            stopped.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stopped, ("127.0.0.1", edge.mesh.settings.port("gateway")))
            await loop.sock_sendall(stopped, f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            await _until_open(edge, WATCH, 1)
            async with edge.http.get(edge.url + path) as response:
                read = await response.read()
            assert 128 * 16_000 < len(read)
            assert 1 == await _open_calls(edge, WATCH)
            # What it has not read yet is there when it goes on.
            late = b""
            while b"turn_completed" not in late:
                late += await loop.sock_recv(stopped, 1 << 20)
            await _until_open(edge, WATCH, 0)


class _Reader:
    """One that takes what it is sent only when it is let to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.free = asyncio.Event()
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            await self.free.wait()
        self.sent.append(message)


class _Source:
    def __init__(self, size: int = 10_000, pieces: int = 200) -> None:
        self.given = 0
        self.closed = False
        self._size = size
        self._pieces = pieces

    async def pieces(self) -> AsyncGenerator[bytes]:
        try:
            for _ in range(self._pieces):
                self.given += self._size
                yield b"x" * self._size
        finally:
            self.closed = True


async def _settled(state: Callable[[], object]) -> None:
    """Lets the loop run until nothing changes any more."""
    for _ in range(50):
        before = state()
        for _ in range(20):
            await asyncio.sleep(0)
        if before == state():
            return


async def test_a_slow_reader_holds_its_source_up_and_gets_what_waits_together():
    reader, source = _Reader(), _Source()
    sending = asyncio.create_task(Streamed(source.pieces(), [])({}, reader.receive, reader.send))
    await _settled(lambda: source.given)
    held = source.given
    assert held <= 2 * (64 * 1024 + 10_000), "what is on its way, and what waits"
    reader.free.set()
    await sending
    bodies = [message["body"] for message in reader.sent[1:]]
    assert 2_000_000 == len(b"".join(bodies))
    assert len(bodies) < 100, "pieces that wait are sent together"
    assert source.closed


async def test_a_reader_that_leaves_closes_the_source_before_the_response_is_over():
    reader, source = _Reader(), _Source()
    reader.free.set()
    reader.left.set()
    await Streamed(source.pieces(), [])({}, reader.receive, reader.send)
    assert source.closed
    assert source.given < 2_000_000
    assert not [message for message in reader.sent if message.get("more_body") is False]


async def test_what_a_source_raises_breaks_the_response():
    async def broken() -> AsyncGenerator[bytes]:
        yield b"half"
        raise RuntimeError("gone")

    reader = _Reader()
    reader.free.set()
    sending: Awaitable[None] = Streamed(broken(), [])({}, reader.receive, reader.send)
    with pytest.raises(RuntimeError, match="gone"):
        await sending
    assert b"half" == reader.sent[1]["body"]
    assert not [message for message in reader.sent if message.get("more_body") is False]
