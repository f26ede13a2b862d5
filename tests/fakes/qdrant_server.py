"""A server that speaks Qdrant's gRPC, well or away.

A fake: written from the maker's published protos (`points.proto`, `points_service.proto`, `collections_service.proto`,
as they come with qdrant-client 1.20.0, read in November 2026), with the maker's generated stubs; the maker's own client
runs unchanged against it. It knows the calls and conditions that `remote::qdrant` uses and refuses all others, searches
by comparing everything, and keeps nothing. What it cannot show is how a real server scales, or what its disk does.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from qdrant_client.grpc import collections_pb2 as collections
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc
from qdrant_client.grpc import points_pb2 as points

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

KEY = "a-key-of-qdrant-that-no-log-may-hold"
Code = grpc.StatusCode


@dataclass
class Collection:
    """Points of one length."""

    size: int
    indexed: dict[str, Any] = field(default_factory=dict)
    points: dict[str, Any] = field(default_factory=dict)


class FakeQdrant(points_service_pb2_grpc.PointsServicer, collections_service_pb2_grpc.CollectionsServicer):
    """The server; tests look at its collections and set what it answers."""

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.calls: list[str] = []
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        """What every call is answered."""
        self.status = points.UpdateStatus.Completed
        """What writes are answered; Acknowledged ones are not done."""
        self.query: Any = None
        """What searches instead."""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def CollectionExists(self, request: Any, context: Any) -> Any:
        await self._begin("CollectionExists", context)
        exists = request.collection_name in self.collections
        return collections.CollectionExistsResponse(result=collections.CollectionExists(exists=exists))

    async def Create(self, request: Any, context: Any) -> Any:
        await self._begin("Create", context)
        if request.collection_name in self.collections:
            await context.abort(Code.ALREADY_EXISTS, f"Collection `{request.collection_name}` already exists!")
        params = request.vectors_config.params
        assert params.distance == collections.Distance.Cosine
        self.collections[request.collection_name] = Collection(params.size)
        return collections.CollectionOperationResponse(result=True)

    async def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        collection = await self._begin("CreateFieldIndex", context, request)
        collection.indexed[request.field_name] = request
        return self._written()

    async def Upsert(self, request: Any, context: Any) -> Any:
        collection = await self._begin("Upsert", context, request)
        assert request.wait
        for point in request.points:
            if len(_vector(point)) != collection.size:
                told = f"Wrong input: Vector dimension error: expected dim: {collection.size}"
                await context.abort(Code.INVALID_ARGUMENT, f"{told}, got {len(_vector(point))}")
        if self.status == points.UpdateStatus.Completed:
            collection.points |= {point.id.uuid: point for point in request.points}
        return self._written()

    async def Delete(self, request: Any, context: Any) -> Any:
        collection = await self._begin("Delete", context, request)
        assert request.wait
        chosen = request.points.filter
        assert chosen.must
        collection.points = {uuid: point for uuid, point in collection.points.items() if not _fits(point, chosen)}
        return self._written()

    async def Query(self, request: Any, context: Any) -> Any:
        collection = await self._begin("Query", context, request)
        if self.query is not None:
            return await self.query(request, context)
        wanted = _normal(request.query.nearest.dense.data)
        scored = [
            (sum(one * other for one, other in zip(wanted, _vector(point), strict=True)), point)
            for point in collection.points.values()
            if _fits(point, request.filter)
        ]
        scored.sort(key=lambda pair: -pair[0])
        found = [
            points.ScoredPoint(id=point.id, payload=point.payload, score=score)
            for score, point in scored[: request.limit]
        ]
        return points.QueryResponse(result=found)

    async def _begin(self, call: str, context: Any, request: Any = None) -> Any:
        self.calls.append(call)
        if dict(context.invocation_metadata()).get("api-key") != KEY:
            await context.abort(Code.UNAUTHENTICATED, "Must provide an API key or an Authorization bearer token")
        if self.refusal is not None:
            await context.abort(*self.refusal)
        if request is None:
            return None
        collection = self.collections.get(request.collection_name)
        if collection is None:
            await context.abort(Code.NOT_FOUND, f"Not found: Collection `{request.collection_name}` doesn't exist!")
        return collection

    def _written(self) -> Any:
        return points.PointsOperationResponse(result=points.UpdateResult(operation_id=1, status=self.status))


def _vector(point: Any) -> list[float]:
    vector = point.vectors.vector
    return _normal(vector.dense.data or vector.data)


def _normal(vector: Sequence[float]) -> list[float]:
    """The server brings vectors to length 1 where it compares by cosine."""
    length = math.hypot(*vector) or 1.0
    return [value / length for value in vector]


def _fits(point: Any, chosen: Any) -> bool:
    assert not chosen.should
    return all(_holds(point, each) for each in chosen.must) and not any(_holds(point, each) for each in chosen.must_not)


def _holds(point: Any, condition: Any) -> bool:
    assert condition.WhichOneof("condition_one_of") == "field"
    value = point.payload[condition.field.key]
    held = [each.string_value for each in value.list_value.values] or [value.string_value]
    match = condition.field.match
    match match.WhichOneof("match_value"):
        case "keyword":
            return match.keyword in held
        case "keywords":
            return any(keyword in held for keyword in match.keywords.strings)
        case unknown:
            raise NotImplementedError(unknown)


@asynccontextmanager
async def fake_qdrant(fake: FakeQdrant | None = None) -> AsyncGenerator[FakeQdrant]:
    """Gives a running fake; the same one again finds the same port and points."""
    fake = fake or FakeQdrant()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    points_service_pb2_grpc.add_PointsServicer_to_server(fake, server)
    collections_service_pb2_grpc.add_CollectionsServicer_to_server(fake, server)
    fake.port = server.add_insecure_port(f"127.0.0.1:{fake.port}")
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)
