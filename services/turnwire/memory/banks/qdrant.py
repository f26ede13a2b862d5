"""`remote::qdrant`: vector banks on a Qdrant server, over gRPC.

All banks whose vectors have one length share a collection, `<prefix><length>`, each point with its bank's name in an
index made for tenants: Qdrant is made for few collections of many points. What is put is waited for.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import grpc
from pydantic import BaseModel, ConfigDict, Field, field_validator
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import ProviderError, ProviderRateLimited, ProviderUnavailable, TurnwireError
from turnwire.memory.banks.port import Hit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from pathlib import Path

    from turnwire.memory.banks.port import Entry, Kind, Place, Question, State

T = TypeVar("T")
_POINTS = 256
"""Points of one write."""
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class QdrantProvider:
    """Keeps banks on a server."""

    kinds: frozenset[Kind] = frozenset({"vector"})

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

        url: str
        """As `http://qdrant:6334`, or `https://…`: the port of gRPC."""
        api_key: str | None = None
        collection_prefix: str = Field(default="turnwire-", pattern=r"^[A-Za-z0-9._-]{1,64}$")
        timeout_seconds: int = Field(default=30, ge=1, le=600)

        @field_validator("url")
        @classmethod
        def _has_a_host(cls, value: str) -> str:
            parts = urlsplit(value)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("is a URL with the port of gRPC, as `http://qdrant:6334`")
            return value

    def __init__(self, provider_id: str, config: Config) -> None:
        """Connects with the first call."""
        self.provider_id = provider_id
        self._config = config
        self._client: AsyncQdrantClient | None = None
        self._made: set[int] = set()
        """Lengths of vectors whose collection is known to be there."""
        self._failure = ""

    async def start(self, data_dir: Path) -> None:
        """Makes the client."""
        parts = urlsplit(self._config.url)
        self._client = AsyncQdrantClient(
            host=parts.hostname,
            grpc_port=parts.port or 6334,
            https=parts.scheme == "https",
            api_key=self._config.api_key,
            prefer_grpc=True,
            timeout=self._config.timeout_seconds,
            # It would ask the other port, in a call that blocks.
            check_compatibility=False,
        )

    async def close(self) -> None:
        """Closes the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def state(self) -> tuple[State.ValueType, str]:
        """Unavailable after a call that did not reach the server, until one does."""
        if self._failure:
            return inspect_service_pb2.Provider.STATE_UNAVAILABLE, self._failure
        return inspect_service_pb2.Provider.STATE_READY, ""

    async def create(self, place: Place) -> None:
        """Makes the collection for vectors of that length, and its indexes."""
        if place.dimension in self._made:
            return
        client, name = self._connected(), self._collection(place)
        if not await self._done(client.collection_exists(name)):
            vectors = models.VectorParams(size=place.dimension, distance=models.Distance.COSINE)
            try:
                await self._done(client.create_collection(name, vectors_config=vectors))
            except TurnwireError:
                # Another replica may have been quicker.
                if not await self._done(client.collection_exists(name)):
                    raise
        # Made again they stay as they are; a crash may have come between them and the collection.
        tenants = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        await self._done(client.create_payload_index(name, "bank", field_schema=tenants))
        for field in ("revision", "labels"):
            await self._done(client.create_payload_index(name, field, field_schema=models.PayloadSchemaType.KEYWORD))
        self._made.add(place.dimension)

    async def drop(self, place: Place) -> None:
        """Removes the points of a bank."""
        await self._deleted(place, [_is("bank", place.uid)])

    async def put(self, place: Place, entry: Entry) -> None:
        """Adds the chunks of an entry."""
        await self.create(place)
        for start in range(0, len(entry.vectors), _POINTS):
            points = [
                models.PointStruct(
                    id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{place.uid} {entry.revision} {ordinal}")),
                    vector=list(entry.vectors[ordinal]),
                    payload={
                        "bank": place.uid,
                        "revision": entry.revision,
                        "ordinal": ordinal,
                        "labels": list(entry.labels),
                    },
                )
                for ordinal in range(start, min(start + _POINTS, len(entry.vectors)))
            ]
            await self._applied(self._connected().upsert(self._collection(place), points, wait=True))

    async def remove(self, place: Place, revisions: Sequence[str]) -> None:
        """Removes entries."""
        await self._deleted(place, [_is("bank", place.uid), _is_any("revision", revisions)])

    async def search(self, place: Place, question: Question) -> list[Hit]:
        """Returns the chunks whose vectors are nearest."""
        await self.create(place)
        chosen = models.Filter(
            must=[_is("bank", place.uid), *(_is("labels", label) for label in question.labels)],
            must_not=[_is_any("revision", question.hidden)] if question.hidden else None,
        )
        found = await self._done(
            self._connected().query_points(
                self._collection(place),
                query=list(question.vector),
                query_filter=chosen,
                limit=question.limit,
                with_payload=True,
            )
        )
        hits: list[Hit] = []
        for point in found.points:
            payload: dict[str, Any] = point.payload or {}
            hits.append(Hit(str(payload["revision"]), int(payload["ordinal"]), point.score))
        return hits

    async def _deleted(self, place: Place, conditions: list[models.FieldCondition]) -> None:
        client, name = self._connected(), self._collection(place)
        if place.dimension in self._made or await self._done(client.collection_exists(name)):
            chosen = models.FilterSelector(filter=models.Filter(must=[*conditions]))
            await self._applied(client.delete(name, chosen, wait=True))

    def _collection(self, place: Place) -> str:
        return f"{self._config.collection_prefix}{place.dimension}"

    def _connected(self) -> AsyncQdrantClient:
        if self._client is None:
            raise ProviderUnavailable(self.provider_id, "it is not started")
        return self._client

    async def _applied(self, call: Awaitable[models.UpdateResult]) -> None:
        status = (await self._done(call)).status
        if status != models.UpdateStatus.COMPLETED:
            raise ProviderUnavailable(self.provider_id, f"{self._config.url}: a write is {status.value}, not applied")

    async def _done(self, call: Awaitable[T]) -> T:
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            told = f"{self._config.url}: {error.details() or error.code().name}"
            if error.code() in _AWAY:
                self._failure = told
                raise ProviderUnavailable(self.provider_id, told) from error
            # The collection may have been removed behind us.
            self._made.clear()
            raise ProviderError(self.provider_id, told) from error
        except ResourceExhaustedResponse as error:
            told, seconds = f"{self._config.url}: {error.message}", float(error.retry_after_s)
            raise ProviderRateLimited(self.provider_id, told, retry_after=seconds) from error
        except ApiException as error:
            raise ProviderError(self.provider_id, f"{self._config.url}: {error}") from error
        self._failure = ""
        return answer


def _is(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))


def _is_any(field: str, values: Sequence[str]) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchAny(any=list(values)))
