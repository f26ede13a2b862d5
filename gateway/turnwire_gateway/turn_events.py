"""`GET /v1/turns/{id}/events`: the events of a turn as server-sent events, resumed by `Last-Event-ID`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from starlette.responses import Response

from turnwire.agent.v1 import agent_service_pb2, event_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from turnwire.errors import FieldViolation, InvalidArgument, Unavailable
from turnwire_gateway.bodies import ClientGone, Streamed, unless_gone
from turnwire_gateway.event_json import message_json
from turnwire_gateway.failures import told
from turnwire_gateway.statuses import error_json, status_from
from turnwire_gateway.upstream import Caller, Upstreams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.types import ASGIApp

_DECIDING_SECONDS = 1.0
"""So long the status of the response waits for the turn's first event; a quiet turn is then 200."""
_BEAT_SECONDS = 15.0
"""So much silence gives a comment, whatever the agent service sends: proxies cut quiet streams."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_RETRY = b"retry: 1000\n\n"
_BEAT = b": beat\n\n"
_RESUMABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


@told("agent")
async def turn_events(request: Request) -> ASGIApp:
    """Streams the events after `Last-Event-ID`, or `?after=`; 204 when there are none and none will come.

    `?follow_pauses=true` keeps the stream open while the turn waits for input.
    """
    asked = _asked(request)
    reading = _Reading(request.app.state.upstreams, asked, Caller.of(request.headers), request.app.state.draining)
    if not await reading.begun(request):
        return Response(status_code=204, headers={"cache-control": "no-store"})
    return Streamed(reading.frames(), _HEADERS)


def _asked(request: Request) -> agent_service_pb2.WatchTurnRequest:
    violations: list[FieldViolation] = []
    known = {"after", "follow_pauses"}
    violations += [
        FieldViolation(name[:100], "is no parameter of this route") for name in request.query_params.keys() - known
    ]
    # A browser that comes back repeats the address it was given; what it has seen since goes before that.
    field, text = "last-event-id", request.headers.get("last-event-id", "")
    if not text:
        field, text = "after", request.query_params.get("after", "")
    if text and not (text.isascii() and text.isdigit() and len(text) <= 18):
        violations.append(FieldViolation(field, "is the number of an event"))
    follow = request.query_params.get("follow_pauses", "false")
    if follow not in {"true", "false"}:
        violations.append(FieldViolation("follow_pauses", "is `true` or `false`"))
    if violations:
        raise InvalidArgument(violations)
    return agent_service_pb2.WatchTurnRequest(
        turn_id=request.path_params["turn_id"], after_sequence=int(text or 0), follow_pauses=follow == "true"
    )


class _Reading:
    """One reader of a turn."""

    def __init__(
        self,
        upstreams: Upstreams,
        asked: agent_service_pb2.WatchTurnRequest,
        caller: Caller,
        draining: asyncio.Event,
    ) -> None:
        self._upstreams = upstreams
        self._draining = draining
        stub = AgentServiceStub(upstreams.channel("agent", streams=True))
        self._call = stub.WatchTurn(asked, metadata=caller.metadata)
        self._next: asyncio.Task[event_pb2.StepEvent | None] | None = None

    async def begun(self, request: Request) -> bool:
        """Waits for what decides the status of the response. False when there is nothing to stream.

        Raises:
            grpc.RpcError: the turn cannot be watched.
            ClientGone: the caller left.
        """
        self._next = asyncio.create_task(self._read())
        try:
            async with unless_gone(request.receive) as gone:
                await asyncio.wait({self._next, gone}, timeout=_DECIDING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise ClientGone
            there = not self._next.done() or self._next.result() is not None
        except BaseException:
            await self._close()
            raise
        if not there:
            await self._close()
        return there

    async def frames(self) -> AsyncGenerator[bytes]:
        """Gives the frames of the stream. It ends where the turn ends or pauses, or where it has to be resumed."""
        drained = asyncio.create_task(self._draining.wait())
        try:
            yield _RETRY
            while True:
                assert self._next is not None
                await asyncio.wait({self._next, drained}, timeout=_BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._next.done():
                    event = self._next.result()
                    if event is None:
                        return
                    yield _frame(event)
                    self._next = asyncio.create_task(self._read())
                elif drained.done():
                    return
                else:
                    yield _BEAT
        except grpc.RpcError as error:
            # A cut stream just ends: the reader comes back with the number it has.
            if error.code() not in _RESUMABLE:  # pyright: ignore[reportAttributeAccessIssue] - aio's errors have it
                status = status_from(error, service="agent", address=self._upstreams.address("agent"))
                yield b"event: stream_failed\ndata: " + error_json(status) + b"\n\n"
        except Unavailable:
            return
        finally:
            drained.cancel()
            await self._close()

    async def _read(self) -> event_pb2.StepEvent | None:
        try:
            event = await self._call.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unavailable.cut("agent") from None
        return event if isinstance(event, event_pb2.StepEvent) else None  # the end of the stream is another object

    async def _close(self) -> None:
        self._call.cancel()
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()  # seen, whatever it is


def _frame(event: event_pb2.StepEvent) -> bytes:
    name = (event.WhichOneof("payload") or "unknown").encode()
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.sequence, name, message_json(event))
