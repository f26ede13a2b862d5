"""`inline::llama-cpp`: models in GGUF, run by llama.cpp in this process.

The embedded default is Qwen2.5-Coder-0.5B-Instruct. Its tool calls are read out of its text, because it writes bare or
fenced JSON where llama.cpp's own parser wants tags; a call that has to be made is enforced by a JSON schema of ours,
because the engine's `tool_choice` enforces nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnwire import weights
from turnwire.common.v1 import generation_pb2, inspect_service_pb2, message_pb2
from turnwire.errors import ContextLengthExceeded, ModelCapability, WeightsMissing
from turnwire.inference.providers import openai_words as words
from turnwire.inference.providers.llama_engine import LlamaEngine, default_threads
from turnwire.inference.registry import built_in
from turnwire.inference.stopping import StopSequences
from turnwire.inference.tool_formats import CallReader, call_schema, is_forced, rewritten
from turnwire.inference.tool_formats.beginning import CallBeginning
from turnwire.inference.tool_formats.writing import offered
from turnwire.inference.v1 import inference_service_pb2, model_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    Piece = inference_service_pb2.ChatCompletionResponse

DEFAULT_MODEL = "qwen2.5-coder-0.5b"
_FORCED_CALL_TOKENS = 1024
"""A call that is cut is no call: an unbounded one gets this many tokens."""


class LlamaModel(BaseModel):
    """One model of the provider."""

    model_config = ConfigDict(extra="forbid")

    model_id: str
    path: Path | None = None
    """A GGUF file. Unset: the weights of that name, fetched by `turnwire models pull`."""
    context_tokens: int = Field(default=8192, ge=256, le=1_048_576)

    @model_validator(mode="after")
    def _found_somehow(self) -> LlamaModel:
        known = [model.name for model in weights.MODELS if model.encoder is None]
        if self.path is None and self.model_id not in known:
            raise ValueError(
                f"{self.model_id!r} is none of the models that can be pulled ({', '.join(known)}): give the `path` of"
                " its GGUF file"
            )
        return self


class LlamaCppProvider:
    """Runs each of its models when it is first wanted; the first one from the start."""

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

        models: list[LlamaModel] = Field(default_factory=lambda: [LlamaModel(model_id=DEFAULT_MODEL)], min_length=1)
        parallel: int = Field(default=4, ge=1, le=64)
        """Streams that are written at the same time; further ones wait."""
        decode_threads: int | None = Field(default=None, ge=1)
        batch_threads: int | None = Field(default=None, ge=1)

        @model_validator(mode="before")
        @classmethod
        def _names(cls, value: Any) -> Any:
            """Takes `models: [name, …]` for models with nothing else to say."""
            if isinstance(value, dict) and isinstance(value.get("models"), list):
                models = [{"model_id": item} if isinstance(item, str) else item for item in value["models"]]
                return value | {"models": models}
            return value

    def __init__(self, provider_id: str, config: Config) -> None:
        """Loads nothing yet."""
        self.provider_id = provider_id
        self._config = config
        self._engines: dict[str, LlamaEngine] = {}

    async def start(self) -> None:
        """Begins to load the first model, if its weights are there."""
        first = self._config.models[0]
        if self._path(first) is not None:
            self._engine(first.model_id).start()

    async def close(self) -> None:
        """Unloads all models."""
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))

    def state(self) -> tuple[inspect_service_pb2.Provider.State.ValueType, str]:
        """Starting while the first model is loaded, unavailable without its weights."""
        first = self._config.models[0]
        if self._path(first) is None:
            return inspect_service_pb2.Provider.STATE_UNAVAILABLE, self._missing(first).message
        engine = self._engine(first.model_id)
        if engine.loaded:
            return inspect_service_pb2.Provider.STATE_READY, f"{engine.open_streams} open streams"
        if engine.failure:
            return inspect_service_pb2.Provider.STATE_UNAVAILABLE, engine.failure
        return inspect_service_pb2.Provider.STATE_STARTING, f"loading {first.model_id}"

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns the configured models, and those that were pulled besides."""
        return [
            built_in(
                self.provider_id,
                entry.model_id,
                type=model_pb2.MODEL_TYPE_CHAT,
                context_tokens=entry.context_tokens,
                tool_calling=False,
            )
            for entry in self._entries().values()
        ]

    async def chat(
        self, model: model_pb2.Model, request: inference_service_pb2.ChatCompletionRequest
    ) -> AsyncGenerator[Piece, None]:
        """Streams an answer; calls are read out of its text.

        An answer that turns out to be a call is begun again, held to the schema of one: the prompt is in the engine's
        cache, and what a small model would have got wrong about the form of the call, it cannot.
        """
        engine = self._engine(model.provider_model_id)
        tools = offered(request)
        asked = self._request(request.sampling_parameters) | {"messages": words.messages(rewritten(request))}
        forced = is_forced(request.tool_choice)
        if not forced and tools and _takes_json_calls(request):
            beginning = CallBeginning(frozenset(tool.name for tool in tools))
            async with aclosing(self._pieces(engine, request, asked, tools, beginning)) as pieces:
                async for piece in pieces:
                    yield piece
            if not beginning.found:
                return
            forced = True
        if forced:
            asked |= words.json_schema(call_schema(tools))
            asked.setdefault("max_tokens", _FORCED_CALL_TOKENS)
        else:
            asked |= words.response_format(request.response_format)
        async with aclosing(self._pieces(engine, request, asked, tools, None)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(
        self,
        engine: LlamaEngine,
        request: inference_service_pb2.ChatCompletionRequest,
        asked: dict[str, Any],
        tools: Sequence[generation_pb2.ToolDefinition],
        beginning: CallBeginning | None,
    ) -> AsyncGenerator[Piece, None]:
        """Streams one answer of the engine to its end, or until it turns out to be a call, of which nothing is said."""
        reader = CallReader(request.tool_prompt_format, frozenset(tool.name for tool in tools))
        stops = StopSequences(request.sampling_parameters.stop_sequences)
        ending = _Ending()
        form = "tools" if "response_format" in asked and tools else "response_format"
        async with aclosing(engine.chat(asked, form=form)) as chunks:
            async for chunk in chunks:
                for choice in ending.take(chunk):
                    text = stops.feed(choice["delta"].get("content") or "")
                    if beginning is not None and text and beginning.feed(text):
                        return
                    for piece in reader.feed(text) if text else ():
                        yield piece
                    reasoning = choice["delta"].get("reasoning_content")
                    if reasoning:
                        yield _reasoning(reasoning)
                if stops.found:
                    break
        for piece in (*reader.feed(stops.finish()), *reader.finish()):
            yield piece
        completed = ending.completed(calls=reader.calls, stopped=stops.found)
        yield inference_service_pb2.ChatCompletionResponse(completed=completed)

    async def complete(
        self, model: model_pb2.Model, request: inference_service_pb2.CompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.CompletionResponse, None]:
        """Streams the continuation of a text."""
        engine = self._engine(model.provider_model_id)
        asked = self._request(request.sampling_parameters) | {"prompt": request.prompt}
        form = words.response_format(request.response_format)
        if "response_format" in form:
            asked["json_schema"] = form["response_format"]["json_schema"]["schema"]
        else:
            asked |= form
        stops = StopSequences(request.sampling_parameters.stop_sequences)
        ending = _Ending()
        async with aclosing(engine.complete(asked)) as chunks:
            async for chunk in chunks:
                for choice in ending.take(chunk):
                    text = stops.feed(choice.get("text") or "")
                    if text:
                        yield inference_service_pb2.CompletionResponse(text=inference_service_pb2.TextDelta(text=text))
                if stops.found:
                    break
        rest = stops.finish()
        if rest:
            yield inference_service_pb2.CompletionResponse(text=inference_service_pb2.TextDelta(text=rest))
        completed = ending.completed(calls=0, stopped=stops.found)
        yield inference_service_pb2.CompletionResponse(completed=completed)

    async def embed(self, model: model_pb2.Model, texts: Sequence[str]) -> inference_service_pb2.EmbedResponse:
        """Is none of its work."""
        raise ModelCapability(model.model_id, "embeddings")

    async def count_tokens(
        self, model: model_pb2.Model, request: inference_service_pb2.CountTokensRequest
    ) -> inference_service_pb2.CountTokensResponse:
        """Asks the engine how long the prompt would be; a prompt that is too long has a length, too."""
        asked = inference_service_pb2.ChatCompletionRequest(
            messages=request.messages, tools=request.tools, tool_prompt_format=request.tool_prompt_format
        )
        engine = self._engine(model.provider_model_id)
        body = self._request(asked.sampling_parameters) | {"messages": words.messages(rewritten(asked))}
        try:
            tokens = await engine.count(body)
        except ContextLengthExceeded as error:
            tokens = int(error.metadata["prompt_tokens"])
        return inference_service_pb2.CountTokensResponse(prompt_tokens=tokens, context_tokens=model.context_tokens)

    def _request(self, sampling: generation_pb2.SamplingParameters) -> dict[str, Any]:
        asked = {
            "stream": True,
            "stream_options": {"include_usage": True},
            **words.sampling(sampling, llama_cpp=True),
        }
        # The engine tells neither that a stop sequence ended an answer nor which: they are looked for here. An answer
        # that is left at one has its figures in what was told with each token.
        if asked.pop("stop", None):
            asked["timings_per_token"] = True
        return asked

    def _entries(self) -> dict[str, LlamaModel]:
        entries = {entry.model_id: entry for entry in self._config.models}
        for known in weights.MODELS:
            if known.encoder is None and known.name not in entries:
                pulled = LlamaModel(model_id=known.name)
                if self._path(pulled) is not None:
                    entries[pulled.model_id] = pulled
        return entries

    def _engine(self, model_id: str) -> LlamaEngine:
        engine = self._engines.get(model_id)
        if engine is None:
            entry = self._entries()[model_id]
            path = self._path(entry)
            if path is None:
                raise self._missing(entry)
            decode, batch = default_threads()
            engine = self._engines[model_id] = LlamaEngine(
                self.provider_id,
                model_id,
                path,
                context_tokens=entry.context_tokens,
                parallel=self._config.parallel,
                decode_threads=self._config.decode_threads or decode,
                batch_threads=self._config.batch_threads or batch,
            )
        return engine

    def _path(self, entry: LlamaModel) -> Path | None:
        if entry.path is not None:
            return entry.path if entry.path.is_file() else None
        try:
            return weights.locate(entry.model_id)
        except weights.WeightsError:
            return None

    def _missing(self, entry: LlamaModel) -> WeightsMissing:
        if entry.path is None:
            return WeightsMissing(entry.model_id, entry.model_id)
        hint = "put the file there, or correct `path` in turnwire.yaml"
        return WeightsMissing(entry.model_id, str(entry.path), hint=hint)


def _takes_json_calls(request: inference_service_pb2.ChatCompletionRequest) -> bool:
    """True when the model writes calls as JSON, and nothing else says what its answer looks like."""
    formats = (generation_pb2.TOOL_PROMPT_FORMAT_UNSPECIFIED, generation_pb2.TOOL_PROMPT_FORMAT_JSON)
    return request.tool_prompt_format in formats and not request.HasField("response_format")


class _Ending:
    """Why an answer ended, and what it took, gathered over its chunks."""

    def __init__(self) -> None:
        self._finish = ""
        self._usage: generation_pb2.Usage | None = None
        self._timings: dict[str, Any] | None = None

    def take(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Notes what a chunk says of the end, and returns its choices."""
        if chunk.get("usage"):
            self._usage = words.usage(chunk["usage"])
        self._timings = chunk.get("timings") or self._timings
        choices = chunk.get("choices") or []
        for choice in choices:
            self._finish = choice.get("finish_reason") or self._finish
        return choices

    def completed(self, *, calls: int, stopped: bool) -> inference_service_pb2.ChatCompletionCompleted:
        reason = words.STOP_REASONS.get(self._finish, message_pb2.STOP_REASON_UNSPECIFIED)
        if stopped:
            reason = message_pb2.STOP_REASON_STOP_SEQUENCE
        if calls and reason in {message_pb2.STOP_REASON_END_OF_TURN, message_pb2.STOP_REASON_STOP_SEQUENCE}:
            reason = message_pb2.STOP_REASON_END_OF_MESSAGE
        completed = inference_service_pb2.ChatCompletionCompleted(stop_reason=reason, usage=self._usage)
        timings = self._timings
        if timings is None:
            return completed
        if self._usage is None:
            completed.usage.prompt_tokens = timings["cache_n"] + timings["prompt_n"]
            completed.usage.cached_tokens = timings["cache_n"]
            completed.usage.completion_tokens = timings["predicted_n"]
        completed.timings.prompt.FromMicroseconds(int(timings["prompt_ms"] * 1000))
        completed.timings.completion.FromMicroseconds(int(timings["predicted_ms"] * 1000))
        return completed


def _reasoning(text: str) -> Piece:
    return inference_service_pb2.ChatCompletionResponse(reasoning=inference_service_pb2.TextDelta(text=text))
