"""What the inference service asks of a provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from turnwire.common.v1 import inspect_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from turnwire.inference.v1 import inference_service_pb2, model_pb2

State = inspect_service_pb2.Provider.State


class Provider(Protocol):
    """Serves models. A provider is one module with one class and one pydantic `Config`.

    Failures are errors of `turnwire.errors`. Whoever stops iterating a stream closes it (`aclose`), and the provider
    then stops the model at once.
    """

    provider_id: str

    async def start(self) -> None:
        """Begins to load or connect; returns without waiting for the end of it."""
        ...

    async def close(self) -> None:
        """Stops all models and gives everything back."""
        ...

    def state(self) -> tuple[State.ValueType, str]:
        """Returns the state, and why it is so."""
        ...

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns the models it serves now, by its own names. `type` is unset where the provider cannot tell it."""
        ...

    def chat(
        self, model: model_pb2.Model, request: inference_service_pb2.ChatCompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.ChatCompletionResponse, None]:
        """Streams the answer to a conversation: pieces, then `completed`. `started` is the service's."""
        ...

    def complete(
        self, model: model_pb2.Model, request: inference_service_pb2.CompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.CompletionResponse, None]:
        """Streams the continuation of a text: pieces, then `completed`."""
        ...

    async def embed(self, model: model_pb2.Model, texts: Sequence[str]) -> inference_service_pb2.EmbedResponse:
        """Returns a vector of length 1 for each text."""
        ...

    async def count_tokens(
        self, model: model_pb2.Model, request: inference_service_pb2.CountTokensRequest
    ) -> inference_service_pb2.CountTokensResponse:
        """Counts the tokens of a prompt, or estimates them and says so."""
        ...
