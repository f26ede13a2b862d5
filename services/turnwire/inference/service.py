"""The RPCs of `turnwire.inference.v1.InferenceService`."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from turnwire.errors import ModelCapability
from turnwire.inference import validation
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.inference.v1 import model_pb2
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer
from turnwire.runtime.failpoints import Failpoint, declare_methods
from turnwire.runtime.identity import current

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.inference.providers.port import Provider
    from turnwire.inference.registry import Models

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(messages.DESCRIPTOR.services_by_name["InferenceService"], "ChatCompletion", "Embed")
_FIRST = Failpoint("inference.first_chunk")


class InferenceServicer(InferenceServiceServicer):
    """Serves models of all configured providers. A stream that its caller leaves stops its model."""

    def __init__(self, models: Models) -> None:
        """Finds models by name in `models`."""
        self._models = models

    async def ChatCompletion(
        self, request: messages.ChatCompletionRequest, context: Context
    ) -> AsyncIterator[messages.ChatCompletionResponse]:
        """Streams the answer of a model to a conversation."""
        validation.check_chat(request)
        provider, model = await self._generating(request.model)
        begun = time.monotonic()
        first: float | None = None
        started = messages.ChatCompletionStarted(model_id=model.model_id, provider_id=provider.provider_id)
        yield messages.ChatCompletionResponse(started=started)
        async with aclosing(provider.chat(model, request)) as pieces:
            async for piece in pieces:
                if piece.WhichOneof("payload") == "completed":
                    _complete_timings(piece.completed, first)
                elif first is None:
                    first = time.monotonic() - begun
                    await _FIRST.reached()
                yield piece

    async def Completion(
        self, request: messages.CompletionRequest, context: Context
    ) -> AsyncIterator[messages.CompletionResponse]:
        """Streams the continuation of a text."""
        validation.check_completion(request)
        provider, model = await self._generating(request.model)
        async with aclosing(provider.complete(model, request)) as pieces:
            async for piece in pieces:
                yield piece

    async def Embed(self, request: messages.EmbedRequest, context: Context) -> messages.EmbedResponse:
        """Turns texts into vectors."""
        validation.check_embed(request)
        provider, model = await self._models.resolve(current().tenant, request.model)
        if model.type != model_pb2.MODEL_TYPE_EMBEDDING:
            raise ModelCapability(request.model, "embeddings")
        response = await provider.embed(model, request.texts)
        response.model_id = model.model_id
        response.provider_id = provider.provider_id
        return response

    async def CountTokens(self, request: messages.CountTokensRequest, context: Context) -> messages.CountTokensResponse:
        """Counts the tokens of a conversation."""
        validation.check_count_tokens(request)
        provider, model = await self._generating(request.model)
        return await provider.count_tokens(model, request)

    async def _generating(self, name: str) -> tuple[Provider, model_pb2.Model]:
        provider, model = await self._models.resolve(current().tenant, name)
        if model.type == model_pb2.MODEL_TYPE_EMBEDDING:
            raise ModelCapability(name, "text: it makes embeddings")
        return provider, model


def _complete_timings(completed: messages.ChatCompletionCompleted, first: float | None) -> None:
    """The time to the first token is measured here, the same for all providers."""
    if first is not None:
        completed.timings.time_to_first_token.FromMicroseconds(int(first * 1_000_000))
