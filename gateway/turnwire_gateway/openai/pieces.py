"""What a model or an agent says, piece by piece, before it is written in OpenAI's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from turnwire.common.v1 import message_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnwire.common.v1 import generation_pb2

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class Begun:
    """It was accepted: what fails from here on fails within the answer."""


@dataclass(frozen=True, slots=True)
class Beat:
    """It works on, silently."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a function of the caller."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next characters of the arguments of a call."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of the answer."""

    reason: FinishReason
    usage: generation_pb2.Usage


Piece = Begun | Beat | Text | CallBegun | CallArguments | Ended

_REASONS: Mapping[int, FinishReason] = {
    message_pb2.STOP_REASON_OUT_OF_TOKENS: "length",
    message_pb2.STOP_REASON_MAX_ITERATIONS: "length",
    message_pb2.STOP_REASON_CONTENT_FILTER: "content_filter",
    message_pb2.STOP_REASON_SHIELD: "content_filter",
}


def finish_reason(stop_reason: int, *, called: bool) -> FinishReason:
    """Returns OpenAI's word for why an answer ended."""
    return _REASONS.get(stop_reason, "tool_calls" if called else "stop")
