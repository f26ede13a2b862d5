"""Pieces written as OpenAI's chat completion, whole or in chunks. Fields that are optional there are left out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from turnwire.ids import new_id
from turnwire_gateway.openai.pieces import Beat, Begun, CallArguments, CallBegun, Ended, Piece, Text

if TYPE_CHECKING:
    from turnwire.common.v1 import generation_pb2

DONE = b"data: [DONE]\n\n"
_encoded = msgspec.json.Encoder().encode


@dataclass
class Whole:
    """An answer in one."""

    model: str
    _text: list[str] = field(default_factory=list[str])
    _calls: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    _ended: Ended | None = None

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        match piece:
            case Begun() | Beat():
                pass
            case Text(text):
                self._text.append(text)
            case CallBegun(index, call_id, name):
                function = {"name": name, "arguments": ""}
                self._calls[index] = {"id": call_id, "type": "function", "function": function}
            case CallArguments(index, text):
                self._calls[index]["function"]["arguments"] += text
            case Ended():
                self._ended = piece

    def body(self) -> bytes:
        """Returns the answer; all its pieces were added."""
        assert self._ended is not None
        text = "".join(self._text)
        # In OpenAI's schema `content`, `refusal` and `logprobs` are required, and null where there is none.
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._ended.reason}
        return _encoded(
            {
                "id": new_id("chatcmpl"),
                "object": "chat.completion",
                "created": int(time.time()),
                "model": self.model,
                "choices": [choice],
                "usage": _usage(self._ended.usage),
            }
        )


class Chunks:
    """An answer as server-sent events."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        """With `include_usage` a chunk with the usage comes last, and the others say that they have none."""
        self._head: dict[str, Any] = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage

    def written(self, piece: Piece) -> bytes:
        """Returns the events of a piece."""
        match piece:
            case Begun():
                return self._chunk({"role": "assistant", "content": ""})
            case Beat():
                return b": beat\n\n"
            case Text(text):
                return self._chunk({"content": text})
            case CallBegun(index, call_id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                return self._chunk({"tool_calls": [call]})
            case CallArguments(index, text):
                return self._chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            case Ended(reason, usage):
                last = self._chunk({}, reason)
                if self._include_usage:
                    last += _event(self._head | {"choices": [], "usage": _usage(usage)})
                return last

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        chunk = self._head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        if self._include_usage:
            chunk["usage"] = None
        return _event(chunk)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + _encoded(chunk) + b"\n\n"


def _usage(usage: generation_pb2.Usage) -> dict[str, Any]:
    told: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.cached_tokens:
        told["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return told
