"""A recording of what models answered: a file of JSON lines that people can read and review.

The first line says what the file is, `{"turnwire_recording": 1}`. Each further line is a model or an exchange:

```
{"model": {"model_id": "qwen", "type": "MODEL_TYPE_CHAT", …}}
{"exchange": 1, "kind": "chat", "request": {…}, "responses": [{…}, …]}
{"exchange": 2, "kind": "chat", "request": {…}, "responses": [{…}], "failure": {…}, "retry_after": 2.0}
```

`exchange` counts them in the order in which they began. `request` is the request in protobuf's JSON with the names of
the contract; its model is the provider's own name, and the ids of tool calls, which the agent makes anew each time, are
numbered. A request is found by the SHA-256 of its kind and itself, so a file may be edited by hand. `responses` are the
messages of the answer as they came, `failure` the error that ended it. A line of a kind that is unknown is skipped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from google.protobuf import json_format

from turnwire.common.v1 import error_pb2
from turnwire.errors import TurnwireError, from_failure
from turnwire.inference.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

Kind = Literal["chat", "completion", "embed", "count_tokens"]
HEADER = {"turnwire_recording": 1}
"""The first line of a file."""
_MISSING = object()


class RecordingError(ValueError):
    """A file is no recording; says where and why."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request to a model, and all that came back."""

    number: int
    kind: Kind
    request: Mapping[str, Any]
    responses: Sequence[Mapping[str, Any]] = ()
    failure: Mapping[str, Any] | None = None
    retry_after: float | None = None

    @property
    def digest(self) -> str:
        """What tells this request from others."""
        return digest_of(self.kind, self.request)

    @classmethod
    def of(
        cls,
        number: int,
        kind: Kind,
        request: Mapping[str, Any],
        responses: Sequence[Mapping[str, Any]],
        error: TurnwireError | None,
    ) -> Exchange:
        """Returns what was just seen."""
        if error is None:
            return cls(number, kind, request, responses)
        return cls(number, kind, request, responses, to_json(error.to_failure()), error.retry_after)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Exchange:
        """Returns the exchange of a line."""
        exchange = cls(
            number=int(fields["exchange"]),
            kind=fields["kind"],
            request=dict(fields["request"]),
            responses=[dict(response) for response in fields["responses"]],
            failure=fields.get("failure"),
            retry_after=fields.get("retry_after"),
        )
        exchange.error()
        return exchange

    def to_json(self) -> dict[str, Any]:
        """Returns the line of the file."""
        fields: dict[str, Any] = {
            "exchange": self.number,
            "kind": self.kind,
            "request": self.request,
            "responses": self.responses,
        }
        if self.failure is not None:
            fields["failure"] = self.failure
        if self.retry_after is not None:
            fields["retry_after"] = self.retry_after
        return fields

    def error(self) -> TurnwireError | None:
        """Returns the error that ended the answer, of its own class."""
        if self.failure is None:
            return None
        error = from_failure(json_format.ParseDict(dict(self.failure), error_pb2.Failure()))
        error.retry_after = self.retry_after
        return error


@dataclass(frozen=True, slots=True)
class Recording:
    """What a file holds."""

    models: Sequence[model_pb2.Model]
    exchanges: Sequence[Exchange]

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Reads a file.

        Raises:
            RecordingError: it is not there, or is no recording.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecordingError(f"{path} cannot be read: {error}") from error
        models: dict[str, model_pb2.Model] = {}
        exchanges: list[Exchange] = []
        if not text:
            raise RecordingError(f"{path} is empty")
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                fields = cast("dict[str, Any]", json.loads(line))
                if number == 1 and fields != HEADER:
                    raise RecordingError(f"{path} does not begin with the line {json.dumps(HEADER)}")
                if "model" in fields:
                    model = json_format.ParseDict(fields["model"], model_pb2.Model(), ignore_unknown_fields=True)
                    models[model.model_id] = model
                elif "exchange" in fields:
                    exchanges.append(Exchange.from_json(fields))
            except RecordingError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, json_format.Error) as error:
                raise RecordingError(f"line {number} of {path} is no part of a recording: {error!r}") from error
        return cls(list(models.values()), sorted(exchanges, key=lambda exchange: exchange.number))

    @property
    def last_number(self) -> int:
        """The number of the last exchange; 0 for none."""
        return self.exchanges[-1].number if self.exchanges else 0

    def nearest(self, kind: Kind, request: Mapping[str, Any]) -> tuple[Exchange, list[str]] | None:
        """Returns the exchange whose request is most like this one, and what is different."""
        asked = dict(_leaves(request))
        best: tuple[int, Exchange, list[str]] | None = None
        for exchange in self.exchanges:
            if exchange.kind != kind:
                continue
            recorded = dict(_leaves(exchange.request))
            differing = [path for path in recorded | asked if recorded.get(path, _MISSING) != asked.get(path, _MISSING)]
            if best is None or len(differing) < best[0]:
                shown = [_difference(path, recorded, asked) for path in differing[:2]]
                best = len(differing), exchange, shown
        return best[1:] if best is not None else None


def to_json(message: Message) -> dict[str, Any]:
    """Returns a message in protobuf's JSON, with the names of the contract."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def canonical(request: Message, model: str) -> dict[str, Any]:
    """Returns a request as it is recorded: the same conversation gives the same, whenever and however it is addressed.

    The ids of tool calls become `call_1`, `call_2`, … in the order in which they appear.
    """
    fields = to_json(request)
    fields["model"] = model
    numbers: dict[str, str] = {}
    for message in fields.get("messages", ()):
        for holder in (*message.get("tool_calls", ()), message):
            if "call_id" in holder:
                holder["call_id"] = numbers.setdefault(holder["call_id"], f"call_{len(numbers) + 1}")
    return fields


def digest_of(kind: Kind, request: Mapping[str, Any]) -> str:
    """Returns what tells a request from others."""
    text = json.dumps([kind, request], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def _difference(path: str, recorded: Mapping[str, object], asked: Mapping[str, object]) -> str:
    return f"{path} was {_shown(recorded.get(path, _MISSING))} and is {_shown(asked.get(path, _MISSING))}"


def _shown(value: object) -> str:
    if value is _MISSING:
        return "not there"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}"
