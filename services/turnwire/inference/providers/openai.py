"""`remote::openai`: any server that speaks OpenAI's API, as vLLM, llama.cpp's server, or OpenAI itself.

Proved against llama.cpp's own server and against a fake that misbehaves; no outside service was reached.

OpenAI's API has no `top_k` and no repetition penalty. vLLM and llama.cpp take both, so they are sent as vLLM names
them; a server that refuses a field answers 400, and the INVALID_ARGUMENT names it as that server does.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator

from turnwire.common.v1 import generation_pb2, inspect_service_pb2
from turnwire.errors import ModelCapability, ProviderError
from turnwire.inference.providers import openai_words as words
from turnwire.inference.providers.openai_answer import Answer, Chunk, Ending
from turnwire.inference.providers.openai_http import HttpTimeouts, OpenAiHttp
from turnwire.inference.providers.openai_models import ListedModels
from turnwire.inference.registry import built_in
from turnwire.inference.tool_formats import CallReader, call_schema, is_forced, rewritten
from turnwire.inference.tool_formats.writing import offered
from turnwire.inference.v1 import inference_service_pb2, model_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    Piece = inference_service_pb2.ChatCompletionResponse

_TEXTS_A_REQUEST = 64
"""So many vectors are read at once: a larger answer would hold the loop for longer than a token may wait."""


class OpenAiModel(BaseModel):
    """A model of the server, where the server cannot be asked."""

    model_config = ConfigDict(extra="forbid")

    model_id: str
    type: Literal["chat", "embedding"] = "chat"
    context_tokens: int = Field(default=0, ge=0, lt=2**31)
    embedding_dimension: int = Field(default=0, ge=0, lt=2**31)


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: dict[str, Any] | None = None


class OpenAiProvider:
    """Talks to one server."""

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

        base_url: str = Field(pattern=r"^https?://[^/\s]+[^\s]*$")
        """As `http://gpu:8000/v1`."""
        api_key: str = ""
        headers: dict[str, str] = Field(default_factory=dict[str, str])
        models: list[OpenAiModel] = Field(default_factory=list[OpenAiModel])
        """What it serves. Empty: the server is asked."""
        tool_api: bool = True
        """False: tools are written into the prompt, for servers without a tool interface."""
        parallel_tool_calls: bool | None = None
        """Whether one answer may hold several calls. Unset: as the server does by itself (llama.cpp's: no)."""
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
        """What the server calls the limit; OpenAI's newer models take the second only."""
        connect_seconds: float = Field(default=5.0, gt=0)
        first_byte_seconds: float = Field(default=120.0, gt=0)
        """Up to the first event of an answer: the time to read the prompt."""
        silence_seconds: float = Field(default=60.0, gt=0)
        """Between two events of an answer."""

        @field_validator("api_key")
        @classmethod
        def _one_line(cls, value: str) -> str:
            # Keys come out of files with a line's end; within a key it would end the HTTP header.
            stripped = value.strip()
            if any(ord(character) < 32 for character in stripped):
                raise ValueError("has control characters within")
            return stripped

    def __init__(self, provider_id: str, config: Config) -> None:
        """Connects to nothing yet."""
        self.provider_id = provider_id
        self._config = config
        timeouts = HttpTimeouts(config.connect_seconds, config.first_byte_seconds, config.silence_seconds)
        self._http = OpenAiHttp(provider_id, config.base_url, config.api_key, config.headers, timeouts)
        self._listed = ListedModels(provider_id, self._http, seconds=config.connect_seconds)
        self._open_streams = 0

    async def start(self) -> None:
        """Begins to ask the server what it serves."""
        if not self._config.models:
            self._listed.refresh()

    async def close(self) -> None:
        """Closes all connections."""
        await self._listed.close()
        await self._http.close()

    def state(self) -> tuple[inspect_service_pb2.Provider.State.ValueType, str]:
        """Unavailable when the server could not be asked for its models."""
        if self._listed.failure is not None:
            return inspect_service_pb2.Provider.STATE_UNAVAILABLE, self._listed.failure.message
        return inspect_service_pb2.Provider.STATE_READY, f"{self._open_streams} open streams"

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns the configured models, or those that the server names."""
        if self._config.models:
            return [self._configured(entry) for entry in self._config.models]
        listed = await self._listed.get()
        for model in listed:
            model.tool_calling = self._config.tool_api
        return listed

    async def chat(
        self, model: model_pb2.Model, request: inference_service_pb2.ChatCompletionRequest
    ) -> AsyncGenerator[Piece, None]:
        """Streams an answer."""
        name = model.provider_model_id
        body = self._body(name, request.sampling_parameters, request.response_format)
        reader: CallReader | None = None
        if self._in_prompt(request):
            tools = offered(request)
            body["messages"] = words.messages(rewritten(request))
            reader = CallReader(request.tool_prompt_format, frozenset(tool.name for tool in tools))
            if is_forced(request.tool_choice):
                body |= words.json_schema(call_schema(tools))
        else:
            body["messages"] = words.messages(request.messages)
            if request.tools:
                body |= {"tools": words.tools(request.tools), "tool_choice": words.tool_choice(request.tool_choice)}
                if self._config.parallel_tool_calls is not None:
                    body["parallel_tool_calls"] = self._config.parallel_tool_calls
        answer = Answer(reader)
        estimate = words.estimated_usage(request, 0)
        async with aclosing(self._chunks("/chat/completions", body, name, estimate.prompt_tokens)) as chunks:
            async for chunk in chunks:
                for piece in answer.take(chunk):
                    yield piece
        for piece in answer.finish():
            yield piece
        completed = answer.completed()
        if answer.ending.usage is None:
            estimate.completion_tokens = answer.ending.written
            completed.usage.CopyFrom(estimate)
        yield inference_service_pb2.ChatCompletionResponse(completed=completed)

    async def complete(
        self, model: model_pb2.Model, request: inference_service_pb2.CompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.CompletionResponse, None]:
        """Streams the continuation of a text."""
        name = model.provider_model_id
        body = self._body(name, request.sampling_parameters, request.response_format) | {"prompt": request.prompt}
        ending = Ending()
        estimate = generation_pb2.Usage(prompt_tokens=len(request.prompt) // 4 + 1, estimated=True)
        async with aclosing(self._chunks("/completions", body, name, estimate.prompt_tokens)) as chunks:
            async for chunk in chunks:
                for choice in ending.take(chunk):
                    if choice.text:
                        ending.written += 1
                        text = inference_service_pb2.TextDelta(text=choice.text)
                        yield inference_service_pb2.CompletionResponse(text=text)
        estimate.completion_tokens = ending.written
        completed = inference_service_pb2.ChatCompletionCompleted(
            stop_reason=ending.stop_reason(called=False), usage=ending.usage or estimate
        )
        yield inference_service_pb2.CompletionResponse(completed=completed)

    async def embed(self, model: model_pb2.Model, texts: Sequence[str]) -> inference_service_pb2.EmbedResponse:
        """Returns a vector of length 1 for each text."""
        name = model.provider_model_id
        response = inference_service_pb2.EmbedResponse()
        tokens = 0
        for start in range(0, len(texts), _TEXTS_A_REQUEST):
            batch = list(texts[start : start + _TEXTS_A_REQUEST])
            body = await self._http.post("/embeddings", {"model": name, "input": batch}, model=name)
            vectors, usage = await asyncio.to_thread(self._vectors, name, body, len(batch))
            tokens += usage.prompt_tokens
            for vector in vectors:
                response.embeddings.add(values=vector)
        response.usage.CopyFrom(generation_pb2.Usage(prompt_tokens=tokens))
        return response

    async def count_tokens(
        self, model: model_pb2.Model, request: inference_service_pb2.CountTokensRequest
    ) -> inference_service_pb2.CountTokensResponse:
        """Estimates: the API has no way to ask."""
        if model.type == model_pb2.MODEL_TYPE_EMBEDDING:
            raise ModelCapability(model.model_id, "token counts of conversations")
        asked = inference_service_pb2.ChatCompletionRequest(messages=request.messages, tools=request.tools)
        usage = words.estimated_usage(asked, 0)
        return inference_service_pb2.CountTokensResponse(
            prompt_tokens=usage.prompt_tokens, context_tokens=model.context_tokens, estimated=True
        )

    def _in_prompt(self, request: inference_service_pb2.ChatCompletionRequest) -> bool:
        """A format that is named is used, also where the server has a tool interface."""
        return not self._config.tool_api or (
            bool(request.tools) and request.tool_prompt_format != generation_pb2.TOOL_PROMPT_FORMAT_UNSPECIFIED
        )

    def _body(
        self, name: str, sampling: generation_pb2.SamplingParameters, form: generation_pb2.ResponseFormat
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **words.sampling(sampling, llama_cpp=False),
            **words.response_format(form),
        }
        if "max_tokens" in body:
            body[self._config.max_tokens_field] = body.pop("max_tokens")
        return body

    async def _chunks(self, path: str, body: dict[str, Any], model: str, prompt_tokens: int) -> AsyncGenerator[Chunk]:
        decoder = msgspec.json.Decoder(Chunk)
        finished = False
        self._open_streams += 1
        try:
            async with aclosing(self._http.events(path, body, model=model, prompt_tokens=prompt_tokens)) as events:
                async for data in events:
                    try:
                        chunk = decoder.decode(data)
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                        raise self._http.failures.malformed(model, data) from None
                    error = chunk.error if chunk.object != "error" else msgspec.json.decode(data)
                    if error is not None:
                        raise self._http.failures.in_stream(error, model=model, prompt_tokens=prompt_tokens)
                    finished = finished or any(choice.finish_reason for choice in chunk.choices or ())
                    yield chunk
            if not finished:
                raise self._http.failures.broken(model, "its stream ended in the middle of an answer")
        finally:
            self._open_streams -= 1

    def _vectors(self, name: str, body: bytes, wanted: int) -> tuple[list[list[float]], generation_pb2.Usage]:
        try:
            answer = msgspec.json.decode(body, type=_Vectors)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._http.failures.malformed(name, body) from None
        ordered = sorted(answer.data, key=lambda entry: entry.index)
        if [entry.index for entry in ordered] != list(range(wanted)):
            raise ProviderError(self.provider_id, f"{len(ordered)} vectors for {wanted} texts", model=name)
        vectors: list[list[float]] = []
        for entry in ordered:
            length = math.hypot(*entry.embedding) or 1.0
            vectors.append([value / length for value in entry.embedding])
        return vectors, words.usage(answer.usage or {})

    def _configured(self, entry: OpenAiModel) -> model_pb2.Model:
        embedding = entry.type == "embedding"
        return built_in(
            self.provider_id,
            entry.model_id,
            type=model_pb2.MODEL_TYPE_EMBEDDING if embedding else model_pb2.MODEL_TYPE_CHAT,
            context_tokens=entry.context_tokens,
            embedding_dimension=entry.embedding_dimension,
            tool_calling=self._config.tool_api and not embedding,
        )
