"""The answer of an OpenAI-compatible server: its chunks, and the pieces of the contract that they become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.inference.providers import openai_words as words
from turnwire.inference.v1 import inference_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnwire.inference.tool_formats import CallReader

    Piece = inference_service_pb2.ChatCompletionResponse


class Function(msgspec.Struct):
    """A piece of the function of a call."""

    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    """A piece of a call."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    """What a chunk adds."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    """An answer; one is asked for."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    """vLLM's: the stop sequence that was written."""


class Chunk(msgspec.Struct):
    """An event of a stream."""

    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    object: str = ""
    message: str | None = None


class Ending:
    """Why an answer ended, and what it took, gathered over its chunks."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._finish = ""
        self._stopped = False
        self.usage: generation_pb2.Usage | None = None
        self.written = 0
        """Pieces that were written: about as many tokens."""

    def take(self, chunk: Chunk) -> list[Choice]:
        """Notes what a chunk says of the end, and returns its choices."""
        if chunk.usage:
            self.usage = words.usage(chunk.usage)
        choices = chunk.choices or []
        for choice in choices:
            self._finish = choice.finish_reason or self._finish
            self._stopped = self._stopped or isinstance(choice.stop_reason, str)
        return choices

    def stop_reason(self, *, called: bool) -> message_pb2.StopReason.ValueType:
        """Returns the reason in the words of the contract."""
        reason = words.STOP_REASONS.get(self._finish, message_pb2.STOP_REASON_UNSPECIFIED)
        if reason != message_pb2.STOP_REASON_END_OF_TURN:
            return reason
        if called:
            return message_pb2.STOP_REASON_END_OF_MESSAGE
        return message_pb2.STOP_REASON_STOP_SEQUENCE if self._stopped else reason


class Answer:
    """Turns the chunks of an answer into pieces."""

    def __init__(self, reader: CallReader | None) -> None:
        """Reads calls out of the text with `reader`, where there is one."""
        self._reader = reader
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}
        self.ending = Ending()

    def take(self, chunk: Chunk) -> Iterator[Piece]:
        """Yields what a chunk adds."""
        for choice in self.ending.take(chunk):
            delta = choice.delta
            if delta is None:
                continue
            reasoning = delta.reasoning_content or delta.reasoning
            if reasoning:
                self.ending.written += 1
                text = inference_service_pb2.TextDelta(text=reasoning)
                yield inference_service_pb2.ChatCompletionResponse(reasoning=text)
            if delta.content:
                self.ending.written += 1
                yield from self._content(delta.content)
            for call in delta.tool_calls or ():
                self.ending.written += 1
                yield from self._call(call)

    def finish(self) -> Iterator[Piece]:
        """Yields what was held back, and the ends of the calls."""
        if self._reader is not None:
            yield from self._reader.finish()
        for call in self._calls:
            yield from call.opened()
            finished = inference_service_pb2.ToolCallFinished(
                index=call.number, parse_status=parse_status(call.arguments)
            )
            yield inference_service_pb2.ChatCompletionResponse(tool_call_finished=finished)

    def completed(self) -> inference_service_pb2.ChatCompletionCompleted:
        """Returns the end of the answer; without usage where the server told none."""
        called = bool(self._calls) or (self._reader is not None and self._reader.calls > 0)
        return inference_service_pb2.ChatCompletionCompleted(
            stop_reason=self.ending.stop_reason(called=called), usage=self.ending.usage
        )

    def _content(self, text: str) -> Iterator[Piece]:
        if self._reader is not None:
            yield from self._reader.feed(text)
        else:
            yield inference_service_pb2.ChatCompletionResponse(text=inference_service_pb2.TextDelta(text=text))

    def _call(self, piece: Call) -> Iterator[Piece]:
        call = self._open(piece)
        function = piece.function or Function()
        call.name = call.name or function.name or ""
        if call.name:
            yield from call.opened()
        if function.arguments:
            yield from call.more(function.arguments)

    def _open(self, piece: Call) -> _OpenCall:
        """Some servers number no calls, or give all of them the number 0: a new id begins a new call then."""
        call = self._by_index.get(piece.index) if piece.index is not None else None
        if piece.index is None and self._calls and piece.id in {None, self._calls[-1].model_call_id}:
            call = self._calls[-1]
        named = piece.function is not None and bool(piece.function.name)
        if call is not None and named and piece.id and call.model_call_id not in {"", piece.id}:
            call = None
        if call is None:
            call = _OpenCall(len(self._calls), piece.id or "")
            self._calls.append(call)
            if piece.index is not None:
                self._by_index[piece.index] = call
        return call


class _OpenCall:
    """A call that is being written. It is shown when its name is known."""

    def __init__(self, number: int, model_call_id: str) -> None:
        self.number = number
        self.model_call_id = model_call_id
        self.name = ""
        self.arguments = ""
        self._shown = False

    def opened(self) -> Iterator[Piece]:
        if self._shown:
            return
        self._shown = True
        started = inference_service_pb2.ToolCallStarted(
            index=self.number, name=self.name, model_call_id=self.model_call_id
        )
        yield inference_service_pb2.ChatCompletionResponse(tool_call_started=started)
        if self.arguments:
            yield _delta(self.number, self.arguments)

    def more(self, arguments: str) -> Iterator[Piece]:
        self.arguments += arguments
        if self._shown:
            yield _delta(self.number, arguments)


def _delta(number: int, arguments: str) -> Piece:
    delta = inference_service_pb2.ToolCallDelta(index=number, arguments_json=arguments)
    return inference_service_pb2.ChatCompletionResponse(tool_call_delta=delta)


def parse_status(arguments: str) -> message_pb2.ToolCallParseStatus.ValueType:
    """Returns SUCCEEDED for one JSON object, or for nothing at all; FAILED for anything else."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.MsgspecError, RecursionError):
        return message_pb2.TOOL_CALL_PARSE_STATUS_FAILED
    if isinstance(value, dict):
        return message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED
    return message_pb2.TOOL_CALL_PARSE_STATUS_FAILED
