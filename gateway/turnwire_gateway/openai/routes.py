"""`POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{id}`."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from starlette.responses import Response
from starlette.routing import Route

from turnwire.errors import NotFound, TurnwireError
from turnwire_gateway.bodies import ClientGone, Streamed, answered, whole_body
from turnwire_gateway.failures import nothing
from turnwire_gateway.openai.agents import agent_pieces
from turnwire_gateway.openai.answers import DONE, Chunks, Whole
from turnwire_gateway.openai.asked import Asked, read
from turnwire_gateway.openai.failures import Refused, error_object, error_response
from turnwire_gateway.openai.models import AGENT_PREFIX, listed, model_pieces
from turnwire_gateway.statuses import typed_from
from turnwire_gateway.upstream import Caller, Upstreams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from turnwire_gateway.openai.pieces import Piece

_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def openai_routes() -> list[Route]:
    """Returns the routes."""
    return [
        Route("/v1/chat/completions", _told(_chat), methods=["POST"]),
        Route("/v1/models", _told(_models), methods=["GET"]),
        Route("/v1/models/{model:path}", _told(_model), methods=["GET"]),
    ]


def _told(endpoint: Callable[[Request], Awaitable[ASGIApp]]) -> Any:
    async def answer(request: Request) -> ASGIApp:
        try:
            return await endpoint(request)
        except ClientGone:
            return nothing
        except (TurnwireError, Refused) as error:
            return error_response(error)

    return answer


async def _chat(request: Request) -> ASGIApp:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Nothing else: a page of another origin can send other types unasked.
        refusal = Refused(None, f"The content type is application/json, not {kind[:100]!r}.")
        return Response(json.dumps(error_object(refusal)).encode(), 415, media_type="application/json")
    upstreams: Upstreams = request.app.state.upstreams
    caller = _caller(request)
    asked = read(await whole_body(request.receive, request.app.state.settings.limits.message_bytes))
    pieces = _pieces(asked, upstreams, caller)
    if not asked.stream:
        return Response(await answered(request.receive, _whole(asked, pieces)), media_type="application/json")
    try:
        first = await answered(request.receive, _first(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    return Streamed(_streamed(asked, first, pieces), _EVENT_STREAM)


def _caller(request: Request) -> Caller:
    """OpenAI's clients always send a key. A mesh without keys takes that for none."""
    caller = Caller.of(request.headers)
    return caller if request.app.state.settings.access.api_keys else caller.anonymous()


async def _pieces(asked: Asked, upstreams: Upstreams, caller: Caller) -> AsyncGenerator[Piece]:
    """By the model of that name, or else by the agent; `agent:ID` is always the agent."""
    agent_id = asked.model.removeprefix(AGENT_PREFIX)
    missing: NotFound | None = None
    if agent_id == asked.model:
        try:
            async with aclosing(_named("inference", model_pieces(asked, upstreams, caller), upstreams)) as pieces:
                async for piece in pieces:
                    yield piece
        except NotFound as error:
            if error.metadata.get("resource_type") != "model":
                raise
            missing = error
        else:
            return
    try:
        async with aclosing(_named("agent", agent_pieces(agent_id, asked, upstreams, caller), upstreams)) as pieces:
            async for piece in pieces:
                yield piece
    except NotFound as error:
        if missing is not None and error.metadata.get("resource_type") == "agent":
            raise missing from None  # its message lists the models there are
        raise


async def _named(service: str, pieces: AsyncGenerator[Piece], upstreams: Upstreams) -> AsyncGenerator[Piece]:
    """Gives pieces; what their calls raise is typed, and names the service where nothing answered."""
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except grpc.RpcError as error:
            raise typed_from(error, service=service, address=upstreams.address(service)) from None


async def _first(pieces: AsyncGenerator[Piece]) -> Piece:
    return await anext(pieces)


async def _whole(asked: Asked, pieces: AsyncGenerator[Piece]) -> bytes:
    whole = Whole(asked.model)
    async with aclosing(pieces):
        async for piece in pieces:
            whole.add(piece)
    return whole.body()


async def _streamed(asked: Asked, first: Piece, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[bytes]:
    chunks = Chunks(asked.model, include_usage=asked.include_usage)
    async with aclosing(pieces):
        yield chunks.written(first)
        try:
            async for piece in pieces:
                yield chunks.written(piece)
        except (TurnwireError, Refused) as error:
            # Without [DONE]: a cut answer is not to be taken for a whole one.
            told = error_object(error)
            yield b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"
            return
        yield DONE


async def _listed(request: Request) -> list[dict[str, Any]]:
    upstreams: Upstreams = request.app.state.upstreams
    try:
        return await answered(request.receive, listed(upstreams, _caller(request)))
    except grpc.RpcError as error:
        raise typed_from(error, service="inference", address=upstreams.address("inference")) from None


async def _models(request: Request) -> ASGIApp:
    found = await _listed(request)
    return Response(json.dumps({"object": "list", "data": found}).encode(), media_type="application/json")


async def _model(request: Request) -> ASGIApp:
    name: str = request.path_params["model"]
    found = await _listed(request)
    for entry in found:
        if entry["id"] == name:
            return Response(json.dumps(entry).encode(), media_type="application/json")
    raise NotFound("model", name, [entry["id"] for entry in found])
