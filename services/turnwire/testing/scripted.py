"""`inline::scripted`: a model that says what a script tells it to.

```yaml
providers:
  inference:
    - provider_id: scripted
      provider_type: "inline::scripted"
      config:
        models: [scripted]
        rules:
          - contains: weather
            calls: [{name: get_weather, arguments: {city: Berlin}}]
          - after_tool: true
            text: "It is sunny."
          - contains: slow
            tokens: 100
            tokens_per_second: 20
          - contains: broken
            text: "half"
            error: PROVIDER_UNAVAILABLE
```

The first rule that fits answers; without one the model repeats what the user said. A text is written in pieces of one
word. Script for failures: `error` is a reason of the contract without its prefix, raised after what the rule writes,
`times` answers at most so often, `hang` writes nothing more until the caller leaves.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from turnwire.common.v1 import error_pb2, generation_pb2, inspect_service_pb2, message_pb2
from turnwire.errors import ContextLengthExceeded, Historic, ModelCapability, TurnwireError
from turnwire.inference.registry import built_in
from turnwire.inference.stopping import StopSequences
from turnwire.inference.v1 import inference_service_pb2, model_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator, Sequence

    Piece = inference_service_pb2.ChatCompletionResponse


class Call(BaseModel):
    """A tool call that a rule makes."""

    model_config = ConfigDict(extra="forbid")

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    raw: str | None = None
    """The text of the arguments as it is, to write what is no JSON."""


class Rule(BaseModel):
    """When it fits, and what the model does then."""

    model_config = ConfigDict(extra="forbid")

    contains: str | None = None
    """Fits when the last message holds this text."""
    matches: str | None = None
    """Fits when the last message matches this regular expression."""
    after_tool: bool | None = None
    """Fits when the last message is (not) the result of a tool."""
    times: int | None = None
    """Fits at most so often."""

    text: str | None = None
    pieces: list[str] | None = None
    """The text in these pieces; instead of `text`."""
    reasoning: str | None = None
    tokens: int | None = None
    """Writes so many numbered words: `w1 w2 …`; instead of `text`."""
    tokens_per_second: float | None = None
    """At this pace; all at once when unset."""
    calls: list[Call] = Field(default_factory=list[Call])
    stop_reason: str | None = None
    error: str | None = None
    hang: bool = False


class ScriptedProvider:
    """Serves scripted models."""

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

        models: list[str] = Field(default_factory=lambda: ["scripted"])
        context_tokens: int = 0
        """Longer prompts are refused when set; a token is a word."""
        rules: list[Rule] = Field(default_factory=list[Rule])

    def __init__(self, provider_id: str, config: Config) -> None:
        """Follows the rules of `config`."""
        self.provider_id = provider_id
        self.config = config
        self.open_streams = 0
        """Streams that are open now: none is left when all callers are gone."""
        self.requests: list[inference_service_pb2.ChatCompletionRequest] = []
        """The last requests, at most 100."""
        self._used: dict[int, int] = {}

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to give back."""

    def state(self) -> tuple[inspect_service_pb2.Provider.State.ValueType, str]:
        """Always ready."""
        return inspect_service_pb2.Provider.STATE_READY, f"{self.open_streams} open streams"

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns the scripted models."""
        return [
            built_in(
                self.provider_id,
                name,
                type=model_pb2.MODEL_TYPE_CHAT,
                context_tokens=self.config.context_tokens,
                tool_calling=True,
            )
            for name in self.config.models
        ]

    async def chat(
        self, model: model_pb2.Model, request: inference_service_pb2.ChatCompletionRequest
    ) -> AsyncGenerator[Piece, None]:
        """Answers as the first fitting rule says."""
        self.requests = [*self.requests[-99:], request]
        with self._counted():
            length = _words(request.messages)
            if 0 < self.config.context_tokens < length:
                raise ContextLengthExceeded(
                    model.model_id, prompt_tokens=length, context_tokens=self.config.context_tokens
                )
            rule = self._rule(request)
            written = 0
            stops = StopSequences(request.sampling_parameters.stop_sequences)
            async for piece in self._pieces(rule, request, stops):
                written += 1
                yield piece
            if rule.hang:
                await asyncio.Event().wait()
            if rule.error is not None:
                raise _error(rule.error, self.provider_id)
            yield self._completed(rule, request, written, stopped=stops.found)

    async def complete(
        self, model: model_pb2.Model, request: inference_service_pb2.CompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.CompletionResponse, None]:
        """Continues a text as the rules say."""
        part = message_pb2.ContentPart(text=request.prompt)
        message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])
        asked = inference_service_pb2.ChatCompletionRequest(
            model=request.model, messages=[message], sampling_parameters=request.sampling_parameters
        )
        async for piece in self.chat(model, asked):
            match piece.WhichOneof("payload"):
                case "text":
                    yield inference_service_pb2.CompletionResponse(text=piece.text)
                case "completed":
                    yield inference_service_pb2.CompletionResponse(completed=piece.completed)
                case _:
                    pass

    async def embed(self, model: model_pb2.Model, texts: Sequence[str]) -> inference_service_pb2.EmbedResponse:
        """Is not scripted."""
        raise ModelCapability(model.model_id, "embeddings")

    async def count_tokens(
        self, model: model_pb2.Model, request: inference_service_pb2.CountTokensRequest
    ) -> inference_service_pb2.CountTokensResponse:
        """Counts words."""
        return inference_service_pb2.CountTokensResponse(
            prompt_tokens=_words(request.messages), context_tokens=self.config.context_tokens
        )

    @contextmanager
    def _counted(self) -> Generator[None]:
        self.open_streams += 1
        try:
            yield
        finally:
            self.open_streams -= 1

    def _rule(self, request: inference_service_pb2.ChatCompletionRequest) -> Rule:
        last = request.messages[-1]
        said = "".join(part.text for part in last.parts)
        for index, rule in enumerate(self.config.rules):
            if rule.times is not None and self._used.get(index, 0) >= rule.times:
                continue
            if rule.after_tool is not None and rule.after_tool != (last.role == message_pb2.ROLE_TOOL):
                continue
            if rule.contains is not None and rule.contains not in said:
                continue
            if rule.matches is not None and not re.search(rule.matches, said):
                continue
            self._used[index] = self._used.get(index, 0) + 1
            return rule
        return Rule(text=said)

    async def _pieces(
        self, rule: Rule, request: inference_service_pb2.ChatCompletionRequest, stops: StopSequences
    ) -> AsyncGenerator[Piece, None]:
        if rule.reasoning is not None:
            yield inference_service_pb2.ChatCompletionResponse(
                reasoning=inference_service_pb2.TextDelta(text=rule.reasoning)
            )
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for index, piece in enumerate(_texts(rule, request.sampling_parameters)):
            if rule.tokens_per_second:
                await asyncio.sleep(begun + index / rule.tokens_per_second - loop.time())
            elif index % 64 == 63:
                await asyncio.sleep(0)
            text = stops.feed(piece)
            if text:
                yield inference_service_pb2.ChatCompletionResponse(text=inference_service_pb2.TextDelta(text=text))
            if stops.found:
                return
        rest = stops.finish()
        if rest:
            yield inference_service_pb2.ChatCompletionResponse(text=inference_service_pb2.TextDelta(text=rest))
        for index, call in enumerate(rule.calls):
            for piece in _call_pieces(index, call):
                yield piece

    def _completed(
        self, rule: Rule, request: inference_service_pb2.ChatCompletionRequest, written: int, *, stopped: bool
    ) -> Piece:
        reason = message_pb2.STOP_REASON_END_OF_TURN
        if rule.calls:
            reason = message_pb2.STOP_REASON_END_OF_MESSAGE
        limit = request.sampling_parameters.max_tokens
        if request.sampling_parameters.HasField("max_tokens") and _length(rule, request) > limit:
            reason = message_pb2.STOP_REASON_OUT_OF_TOKENS
        if stopped:
            reason = message_pb2.STOP_REASON_STOP_SEQUENCE
        if rule.stop_reason is not None:
            reason = message_pb2.StopReason.Value(f"STOP_REASON_{rule.stop_reason}")
        usage = generation_pb2.Usage(prompt_tokens=_words(request.messages), completion_tokens=written)
        completed = inference_service_pb2.ChatCompletionCompleted(stop_reason=reason, usage=usage)
        return inference_service_pb2.ChatCompletionResponse(completed=completed)


def _texts(rule: Rule, sampling: generation_pb2.SamplingParameters) -> Iterator[str]:
    limit = sampling.max_tokens if sampling.HasField("max_tokens") else None
    if rule.tokens is not None:
        pieces = [f"w{number} " for number in range(1, rule.tokens + 1)]
    elif rule.pieces is not None:
        pieces = rule.pieces
    else:
        pieces = re.findall(r"\s*\S+|\s+", rule.text or "")
    yield from pieces[:limit]


def _length(rule: Rule, request: inference_service_pb2.ChatCompletionRequest) -> int:
    return sum(1 for _ in _texts(rule, generation_pb2.SamplingParameters()))


def _call_pieces(index: int, call: Call) -> Iterator[Piece]:
    started = inference_service_pb2.ToolCallStarted(index=index, name=call.name, model_call_id=f"scripted_{index}")
    yield inference_service_pb2.ChatCompletionResponse(tool_call_started=started)
    arguments = call.raw if call.raw is not None else json.dumps(call.arguments)
    middle = len(arguments) // 2
    for text in (arguments[:middle], arguments[middle:]):
        delta = inference_service_pb2.ToolCallDelta(index=index, arguments_json=text)
        yield inference_service_pb2.ChatCompletionResponse(tool_call_delta=delta)
    finished = inference_service_pb2.ToolCallFinished(index=index, parse_status=_parse_status(arguments))
    yield inference_service_pb2.ChatCompletionResponse(tool_call_finished=finished)


def _parse_status(arguments: str) -> message_pb2.ToolCallParseStatus.ValueType:
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return message_pb2.TOOL_CALL_PARSE_STATUS_FAILED
    if isinstance(parsed, dict):
        return message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED
    return message_pb2.TOOL_CALL_PARSE_STATUS_FAILED


def _words(messages: Sequence[message_pb2.Message]) -> int:
    return sum(len(part.text.split()) for message in messages for part in message.parts)


def _error(name: str, provider_id: str) -> TurnwireError:
    reason = error_pb2.ErrorReason.Value(f"ERROR_REASON_{name}")
    error_class = TurnwireError.by_reason.get(reason, Historic)
    error = error_class.restored(
        f"The provider {provider_id} fails as its script says.", metadata={"provider_id": provider_id}
    )
    error.reason = reason
    return error
