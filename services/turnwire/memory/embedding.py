"""Vectors of texts, by the models of the inference service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from turnwire.errors import ModelCapability, NotServed, ProviderError, from_rpc_error
from turnwire.inference.v1 import inference_service_pb2, model_pb2, model_service_pb2
from turnwire.runtime.failpoints import Boundary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
    from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub

_SECONDS = 60.0
_EMBEDDING = Boundary("memory.embedded")
_BATCH = 16
"""Texts of one call, of the 512 that it may have: a question waits for no more than that, and progress is told."""


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model, as a bank keeps it."""

    address: str
    """`provider_id/model_id`, which is beyond doubt."""
    dimension: int
    context_tokens: int = 0
    """0: not known."""


class Embeddings:
    """Asks the inference service."""

    def __init__(self, inference: InferenceServiceStub, models: ModelServiceStub) -> None:
        """Calls with these stubs."""
        self._inference = inference
        self._models = models

    async def model(self, name: str) -> EmbeddingModel:
        """Returns the model of a name; for an empty one the first embedding model that is listed.

        Raises:
            NotFound: there is none of the name.
            NotServed: there is no embedding model at all.
            ModelCapability: the model makes no vectors.
        """
        try:
            model = await self._named(name) if name else await self._first()
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        if model.type != model_pb2.MODEL_TYPE_EMBEDDING:
            raise ModelCapability(name, "embeddings")
        address = f"{model.provider_id}/{model.model_id}"
        dimension = model.embedding_dimension
        if not dimension:
            # The provider cannot tell; a vector can.
            (vector,) = await self._embed(address, ["dimension"])
            dimension = len(vector)
        return EmbeddingModel(address, dimension, model.context_tokens)

    async def vectors(
        self, address: str, dimension: int, texts: Sequence[str], done: Callable[[int], None] | None = None
    ) -> list[Sequence[float]]:
        """Returns a vector for each text; `done` hears how many are made.

        Raises:
            NotServed: what answers under the name now is not the bank's model.
            TurnwireError: the inference service cannot.
        """
        made: list[Sequence[float]] = []
        for start in range(0, len(texts), _BATCH):
            batch = await self._embed(address, texts[start : start + _BATCH])
            if any(len(vector) != dimension for vector in batch):
                raise NotServed(
                    "embedding model",
                    f"{address} of {dimension} dimensions",
                    available=[f"{address} of {len(batch[0])} dimensions"],
                )
            made += batch
            if done is not None:
                done(len(made))
        return made

    async def _embed(self, address: str, texts: Sequence[str]) -> list[Sequence[float]]:
        request = inference_service_pb2.EmbedRequest(model=address, texts=texts)
        try:
            async with _EMBEDDING:
                response = await self._inference.Embed(request, timeout=_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        answered = f"{response.provider_id}/{response.model_id}"
        if answered != address:
            raise NotServed("embedding model", address, available=[answered])
        if len(response.embeddings) != len(texts):
            told = f"{len(response.embeddings)} vectors came for {len(texts)} texts"
            raise ProviderError(response.provider_id, told, model=address)
        return [list(embedding.values) for embedding in response.embeddings]

    async def _named(self, name: str) -> model_pb2.Model:
        model = (await self._models.GetModel(model_service_pb2.GetModelRequest(model_id=name), timeout=_SECONDS)).model
        if model.built_in:
            return model
        # A registration can be taken back and given to another model; what stands behind it cannot.
        behind = model_service_pb2.GetModelRequest(model_id=f"{model.provider_id}/{model.provider_model_id}")
        origin = (await self._models.GetModel(behind, timeout=_SECONDS)).model
        return origin if origin.built_in and origin.type == model_pb2.MODEL_TYPE_EMBEDDING else model

    async def _first(self) -> model_pb2.Model:
        request = model_service_pb2.ListModelsRequest(type=model_pb2.MODEL_TYPE_EMBEDDING, page_size=1)
        listed = (await self._models.ListModels(request, timeout=_SECONDS)).models
        if not listed:
            raise NotServed("embedding model", "any")
        return listed[0]
