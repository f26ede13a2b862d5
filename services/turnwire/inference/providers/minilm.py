"""`inline::minilm`: sentence embeddings with all-MiniLM-L6-v2 on ONNX Runtime.

Vectors have 384 components and length 1. Texts are read up to 256 tokens (the model was trained on as many); what is
longer is cut. The graph is written and quantised to int8 at set-up; `precision: fp32` takes the exact one. Vectors of
the two do not compare: a collection keeps the model's id with them.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from turnwire import weights
from turnwire.common.v1 import generation_pb2, inspect_service_pb2
from turnwire.errors import ModelCapability, WeightsMissing
from turnwire.inference.registry import built_in
from turnwire.inference.v1 import inference_service_pb2, model_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_NAME = "all-minilm-l6-v2"
_DIMENSION = 384
_MAX_TOKENS = 256
_BATCH = 32


class MiniLmProvider:
    """Makes embeddings in a thread of its own."""

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

        precision: Literal["int8", "fp32"] = "int8"
        threads: int = Field(default=1, ge=1, le=64)

    def __init__(self, provider_id: str, config: Config) -> None:
        """Loads nothing yet."""
        self.provider_id = provider_id
        self._config = config
        self._model_id = _NAME if config.precision == "int8" else f"{_NAME}-fp32"
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm")
        self._engine: tuple[Any, Any] | None = None
        self._failure = ""

    async def start(self) -> None:
        """Looks whether the weights are there; they are loaded with the first text."""
        self._missing()

    async def close(self) -> None:
        """Waits for the text in work."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        self._engine = None

    def state(self) -> tuple[inspect_service_pb2.Provider.State.ValueType, str]:
        """Unavailable while its weights are missing."""
        if self._missing() is not None:
            return inspect_service_pb2.Provider.STATE_UNAVAILABLE, self._failure
        return inspect_service_pb2.Provider.STATE_READY, ""

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns the one model."""
        return [
            built_in(
                self.provider_id,
                self._model_id,
                type=model_pb2.MODEL_TYPE_EMBEDDING,
                context_tokens=_MAX_TOKENS,
                embedding_dimension=_DIMENSION,
            )
        ]

    def chat(
        self, model: model_pb2.Model, request: inference_service_pb2.ChatCompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.ChatCompletionResponse, None]:
        """Is none of its work."""
        raise ModelCapability(model.model_id, "text")

    def complete(
        self, model: model_pb2.Model, request: inference_service_pb2.CompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.CompletionResponse, None]:
        """Is none of its work."""
        raise ModelCapability(model.model_id, "text")

    async def embed(self, model: model_pb2.Model, texts: Sequence[str]) -> inference_service_pb2.EmbedResponse:
        """Returns a vector for each text."""
        missing = self._missing()
        if missing is not None:
            raise missing
        loop = asyncio.get_running_loop()
        response = inference_service_pb2.EmbedResponse()
        tokens = 0
        wanted = list(texts)
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            vectors, count = await loop.run_in_executor(self._threads, self._embed, batch)
            tokens += count
            for vector in vectors:
                response.embeddings.add(values=vector)
        response.usage.CopyFrom(generation_pb2.Usage(prompt_tokens=tokens))
        return response

    async def count_tokens(
        self, model: model_pb2.Model, request: inference_service_pb2.CountTokensRequest
    ) -> inference_service_pb2.CountTokensResponse:
        """Is none of its work: it reads no conversations."""
        raise ModelCapability(model.model_id, "token counts of conversations")

    def _missing(self) -> WeightsMissing | None:
        try:
            weights.locate("minilm", precision=self._config.precision)
        except weights.WeightsError as error:
            self._failure = str(error)
            return WeightsMissing("minilm", f"{_NAME}, {self._config.precision}")
        return None

    def _embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        import numpy as np  # only a process that embeds pays for it

        session, tokenizer = self._loaded()
        encoded = tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in encoded], dtype=np.int64)
        mask = np.array([each.attention_mask for each in encoded], dtype=np.int64)
        (vectors,) = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
        return vectors.tolist(), int(mask.sum())

    def _loaded(self) -> tuple[Any, Any]:
        if self._engine is None:
            import onnxruntime  # as above
            from tokenizers import Tokenizer  # as above

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._config.threads
            graph = weights.locate("minilm", precision=self._config.precision)
            session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            tokenizer = Tokenizer.from_file(str(weights.locate("minilm", "tokenizer.json")))
            tokenizer.enable_truncation(_MAX_TOKENS)
            tokenizer.enable_padding()
            self._engine = session, tokenizer
        return self._engine
