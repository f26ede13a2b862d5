"""Readers that never read: streams of a turn, over gRPC and through the gateway, that take nothing off their wires."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.agent.v1 import agent_service_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from turnwire.runtime.channels import channel_options

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_CHANNELS = 20
"""A connection has a window of its own beside those of its streams, so readers do not share one."""
_LOOK_SECONDS = 0.01
_ANSWERED = b"HTTP/1.1 200 "


@asynccontextmanager
async def over_grpc(
    address: str, request: agent_service_pb2.RunTurnRequest, count: int
) -> AsyncGenerator[list[grpc.aio.UnaryStreamCall[Any, Any]]]:
    """Gives streams that the service has begun to answer: every second attaches by `RunTurn`, the others watch."""
    watch = agent_service_pb2.WatchTurnRequest(turn_id=request.turn_id, follow_pauses=request.follow_pauses)
    # With large windows what is not read would lie in the reader, and nothing of it in the service.
    options = channel_options(keepalive_ms=30_000, small_windows=True)
    async with AsyncExitStack() as stack:
        stubs: list[Any] = [
            AgentServiceStub(await stack.enter_async_context(grpc.aio.insecure_channel(address, options)))
            for _ in range(_CHANNELS)
        ]
        calls: list[Any] = []
        for number in range(count):
            stub = stubs[number % _CHANNELS]
            calls.append(stub.WatchTurn(watch) if number // _CHANNELS % 2 else stub.RunTurn(request))
        try:
            await asyncio.gather(*(call.initial_metadata() for call in calls))
            yield calls
        finally:
            for call in calls:
                call.cancel()


@asynccontextmanager
async def over_http(address: str, turn_id: str, count: int) -> AsyncGenerator[None]:
    """Keeps streams open that the gateway has begun to answer: every second as server-sent events, or by Connect."""
    host, _, port = address.rpartition(":")
    body = agent_service_pb2.WatchTurnRequest(turn_id=turn_id, follow_pauses=True).SerializeToString()
    posted = b"\0" + len(body).to_bytes(4, "big") + body
    requests = (
        f"GET /v1/turns/{turn_id}/events?follow_pauses=true HTTP/1.1\r\nhost: {address}\r\n\r\n".encode(),
        b"POST /turnwire.agent.v1.AgentService/WatchTurn HTTP/1.1\r\nhost: %s\r\n"
        b"content-type: application/connect+proto\r\ncontent-length: %d\r\n\r\n%s"
        % (address.encode(), len(posted), posted),
    )
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for number, each in enumerate(opened):
            each.setblocking(False)
            await loop.sock_connect(each, (host, int(port)))
            await loop.sock_sendall(each, requests[number % 2])
        for each in opened:
            await _answered(each)
        yield


async def _answered(opened: socket.socket) -> None:
    while True:
        begun = _peeked(opened)
        if begun is not None and not 0 < len(begun) < len(_ANSWERED):
            break
        await asyncio.sleep(_LOOK_SECONDS)
    if begun != _ANSWERED:
        raise RuntimeError(f"the gateway answered {begun!r}")


def _peeked(opened: socket.socket) -> bytes | None:
    """Returns how an answer begins, and leaves it where it is; None before it has begun."""
    try:
        return opened.recv(len(_ANSWERED), socket.MSG_PEEK)
    except BlockingIOError:
        return None
