"""`inline::replay`: a model that answers as a real one once did.

Record once, against the real model:

```yaml
providers:
  inference:
    - provider_id: replay
      provider_type: "inline::replay"
      config:
        path: tests/recordings/weather.jsonl
        mode: record
        upstream: {provider_type: "remote::openai", config: {base_url: "http://gpu:8000/v1", api_key: "${env.KEY}"}}
```

Then leave `mode` and `upstream` out: the file answers, without a model, a network or a key. Requests are told apart by
all they hold but the ids of tool calls. What was asked several times is answered in that order; once more than that is
an error, unless `repeat` gives the last answer again. What was never asked is an error that names the nearest request.

Recording adds to the file; remove it to begin anew. An answer that its caller left is not recorded. Secrets of the
upstream's configuration are blacked out wherever they turn up. `turnwire.testing.recording` describes the file.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from google.protobuf import json_format
from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import InvalidArgument, ProviderError, TurnwireError
from turnwire.inference import providers
from turnwire.inference.v1 import inference_service_pb2, model_pb2
from turnwire.testing.recording import (
    HEADER,
    Exchange,
    Kind,
    Recording,
    RecordingError,
    canonical,
    digest_of,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping, Sequence

    from google.protobuf.message import Message

    from turnwire.inference.providers.port import Provider

M = TypeVar("M", bound="Message")
_SECRET = re.compile(r"key|token|secret|password|credential|authorization|cookie", re.IGNORECASE)
_SHORTEST_SECRET = 8
_BLACKED = "[secret]"


class Upstream(BaseModel):
    """The provider that is recorded, configured as it is without recording."""

    model_config = ConfigDict(extra="forbid")

    provider_type: str
    config: dict[str, Any] = Field(default_factory=dict)


class ReplayProvider:
    """Serves recorded models, or records those of another provider."""

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

        path: Path
        """The file; relative to the folder of the process."""
        mode: Literal["replay", "record"] = "replay"
        repeat: bool = False
        """Whether the last answer to a request is given again when it is asked more often than it was recorded."""
        upstream: Upstream | None = None
        """What to record. Mode `record` only."""

        @model_validator(mode="after")
        def _complete(self) -> ReplayProvider.Config:
            if self.mode == "record" and self.upstream is None:
                raise ValueError("mode `record` needs `upstream`: the provider_type and config of what is recorded")
            return self

    def __init__(self, provider_id: str, config: Config) -> None:
        """Reads, or writes, the file of `config`."""
        self.provider_id = provider_id
        self.config = config
        self._recording = Recording([], [])
        self._answers: dict[str, list[Exchange]] = {}
        self._given: dict[str, int] = {}
        self._upstream: Provider | None = None
        self._number = 0
        self._known_models: set[bytes] = set()
        self._writing = asyncio.Lock()
        self._secrets: list[str] = []
        if config.mode == "record" and config.upstream is not None:
            self._upstream = providers.build(provider_id, config.upstream.provider_type, config.upstream.config)
            self._secrets = sorted(set(_secrets(config.upstream.config)), key=len, reverse=True)

    async def start(self) -> None:
        """Reads the file, and starts what is recorded.

        Raises:
            InvalidArgument: the file is no recording.
        """
        if self._upstream is None or await asyncio.to_thread(self.config.path.exists):
            try:
                self._recording = await asyncio.to_thread(Recording.read, self.config.path)
            except RecordingError as error:
                hint = "" if self._upstream is not None else "; `mode: record` with an `upstream` makes one"
                field = f"providers.inference[{self.provider_id}].config.path"
                raise InvalidArgument.one(field, f"{error}{hint}") from error
        self._number = self._recording.last_number
        for exchange in self._recording.exchanges:
            self._answers.setdefault(exchange.digest, []).append(exchange)
        if self._upstream is not None:
            await self._upstream.start()

    async def close(self) -> None:
        """Closes what is recorded; the file is whole after each exchange."""
        if self._upstream is not None:
            await self._upstream.close()

    def state(self) -> tuple[inspect_service_pb2.Provider.State.ValueType, str]:
        """Returns the state of what is recorded; a recording is ready."""
        if self._upstream is not None:
            state, detail = self._upstream.state()
            return state, f"records to {self.config.path}. {detail}".rstrip()
        return inspect_service_pb2.Provider.STATE_READY, f"{len(self._recording.exchanges)} recorded exchanges"

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns the recorded models, or those that can be recorded."""
        if self._upstream is not None:
            return await self._upstream.models()
        models: list[model_pb2.Model] = []
        for recorded in self._recording.models:
            model = model_pb2.Model()
            model.CopyFrom(recorded)
            model.provider_id = self.provider_id
            models.append(model)
        return models

    async def chat(
        self, model: model_pb2.Model, request: inference_service_pb2.ChatCompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.ChatCompletionResponse, None]:
        """Streams the recorded pieces, in their order."""
        source = self._upstream.chat(model, request) if self._upstream is not None else None
        async with aclosing(
            self._stream("chat", model, request, source, inference_service_pb2.ChatCompletionResponse)
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def complete(
        self, model: model_pb2.Model, request: inference_service_pb2.CompletionRequest
    ) -> AsyncGenerator[inference_service_pb2.CompletionResponse, None]:
        """Streams the recorded pieces, in their order."""
        source = self._upstream.complete(model, request) if self._upstream is not None else None
        async with aclosing(
            self._stream("completion", model, request, source, inference_service_pb2.CompletionResponse)
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def embed(self, model: model_pb2.Model, texts: Sequence[str]) -> inference_service_pb2.EmbedResponse:
        """Returns the recorded vectors."""
        request = inference_service_pb2.EmbedRequest(texts=texts)
        source = self._upstream.embed(model, texts) if self._upstream is not None else None
        return await self._single("embed", model, request, source, inference_service_pb2.EmbedResponse)

    async def count_tokens(
        self, model: model_pb2.Model, request: inference_service_pb2.CountTokensRequest
    ) -> inference_service_pb2.CountTokensResponse:
        """Returns the recorded count."""
        source = self._upstream.count_tokens(model, request) if self._upstream is not None else None
        return await self._single("count_tokens", model, request, source, inference_service_pb2.CountTokensResponse)

    async def _single(
        self, kind: Kind, model: model_pb2.Model, request: Message, source: Awaitable[M] | None, message: type[M]
    ) -> M:
        async def one() -> AsyncGenerator[M, None]:
            assert source is not None
            yield await source

        stream = self._stream(kind, model, request, one() if source is not None else None, message)
        async with aclosing(stream) as responses:
            async for response in responses:
                return response
        raise ProviderError(self.provider_id, f"the recording holds no answer to this {kind} request")

    async def _stream(
        self,
        kind: Kind,
        model: model_pb2.Model,
        request: Message,
        source: AsyncGenerator[M, None] | None,
        message: type[M],
    ) -> AsyncGenerator[M, None]:
        asked = canonical(request, model.provider_model_id)
        if source is not None:
            async with aclosing(self._recorded(kind, model, asked, source)) as recorded:
                async for response in recorded:
                    yield response
            return
        exchange = self._answer(kind, asked)
        for index, response in enumerate(exchange.responses):
            if index % 64 == 63:
                await asyncio.sleep(0)
            yield json_format.ParseDict(dict(response), message(), ignore_unknown_fields=True)
        error = exchange.error()
        if error is not None:
            raise error

    def _answer(self, kind: Kind, asked: dict[str, Any]) -> Exchange:
        """Returns the exchange that answers a request now.

        Raises:
            ProviderError: there is none.
        """
        digest = digest_of(kind, asked)
        answers = self._answers.get(digest, [])
        given = self._given.get(digest, 0)
        if given < len(answers) or (answers and self.config.repeat):
            self._given[digest] = given + 1
            return answers[min(given, len(answers) - 1)]
        if answers:
            raise ProviderError(
                self.provider_id,
                f"this {kind} request was recorded {len(answers)} times and is asked once more (exchange "
                f"{answers[-1].number} of {self.config.path}). Record it again, or set `repeat: true`.",
                model=asked["model"],
            )
        raise ProviderError(
            self.provider_id, f"{self.config.path} has {self._nearest(kind, asked)}", model=asked["model"]
        )

    def _nearest(self, kind: Kind, asked: dict[str, Any]) -> str:
        found = self._recording.nearest(kind, asked)
        how = "Record it: `mode: record` with an `upstream`."
        if found is None:
            return f"no {kind} request at all. {how}"
        exchange, differences = found
        return f"no such {kind} request. The nearest is exchange {exchange.number}: {'; '.join(differences)}. {how}"

    async def _recorded(
        self, kind: Kind, model: model_pb2.Model, asked: dict[str, Any], source: AsyncGenerator[M, None]
    ) -> AsyncGenerator[M, None]:
        """Passes an answer on, and writes it down when it is whole."""
        self._number += 1
        number = self._number
        responses: list[dict[str, Any]] = []
        ended: TurnwireError | None = None
        try:
            async with aclosing(source):
                async for response in source:
                    responses.append(to_json(response))
                    yield response
        except TurnwireError as error:
            ended = error
            raise
        finally:
            # A caller that leaves throws GeneratorExit or a cancellation here: half an answer is none.
            if ended is not None or _whole(kind, responses):
                await self._write(model, Exchange.of(number, kind, asked, responses, ended))

    async def _write(self, model: model_pb2.Model, exchange: Exchange) -> None:
        async with self._writing:
            served = model_pb2.Model()
            served.CopyFrom(model)
            served.model_id = served.provider_model_id
            served.built_in = True
            for field in ("provider_id", "create_time", "metadata"):
                served.ClearField(field)
            lines = [_line(self._blacked(exchange.to_json()))]
            key = served.SerializeToString(deterministic=True)
            if key not in self._known_models:
                self._known_models.add(key)
                lines.insert(0, _line({"model": to_json(served)}))
            await asyncio.to_thread(self._append, lines)

    def _append(self, lines: Sequence[str]) -> None:
        path = self.config.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(_line(HEADER))
            file.writelines(lines)

    def _blacked(self, value: Any) -> Any:
        """Returns what is to be written, without secrets."""
        if isinstance(value, dict):
            return {key: self._blacked(inner) for key, inner in cast("dict[str, Any]", value).items()}
        if isinstance(value, list):
            return [self._blacked(inner) for inner in cast("list[Any]", value)]
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, _BLACKED)
        return value


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _whole(kind: Kind, responses: Sequence[dict[str, Any]]) -> bool:
    if not responses:
        return False
    return "completed" in responses[-1] if kind in ("chat", "completion") else True


def _secrets(value: object, *, within: bool = False) -> Iterator[str]:
    """The texts of a configuration that nobody else should read."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            yield from _secrets(inner, within=within or bool(_SECRET.search(key)))
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _secrets(inner, within=within)
    elif isinstance(value, str):
        if within and len(value) >= _SHORTEST_SECRET:
            yield value
            # As `Bearer sk-…` in a header.
            yield from (word for word in value.split() if len(word) >= _SHORTEST_SECRET)
        # The user and password of an address.
        yield from re.findall(r"://([^/@\s]+)@", value)
