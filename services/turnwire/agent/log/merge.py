"""Neighbouring deltas of one text, merged: for slow readers, and for the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.v1 import event_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_TEXT_BYTES = 32 * 1024
"""The longest text of a delta. Each reader that has stopped reading costs about four of them, so they are short."""
_CONTINUES = 0b1000_0000
_LEADING_BITS = 0b1100_0000


def merged(events: Iterable[event_pb2.StepEvent], limit: int = MOST_TEXT_BYTES) -> Iterator[event_pb2.StepEvent]:
    """Yields the events with neighbouring deltas of one text joined; their ranges cover the same numbers."""
    run: list[event_pb2.StepEvent] = []
    size = 0
    for event in events:
        is_delta = event.WhichOneof("payload") == "step_delta"
        length = byte_length(event.step_delta.text) if is_delta else 0
        if run and not (is_delta and size + length <= limit and _same_text(run[-1], event)):
            yield _join(run)
            run, size = [], 0
        if is_delta:
            run.append(event)
            size += length
        else:
            yield event
    if run:
        yield _join(run)


def pieces(text: str, limit: int = MOST_TEXT_BYTES) -> Iterator[str]:
    """Yields a text in pieces that fit a delta; at least one, whole code points."""
    if byte_length(text) <= limit:
        yield text
        return
    data = text.encode()
    start = 0
    while start < len(data):
        end = min(start + limit, len(data))
        while end < len(data) and data[end] & _LEADING_BITS == _CONTINUES:
            end -= 1
        yield data[start:end].decode()
        start = end


def byte_length(text: str) -> int:
    """Returns how many bytes a text has on the wire."""
    return len(text) if text.isascii() else len(text.encode())


def _same_text(first: event_pb2.StepEvent, second: event_pb2.StepEvent) -> bool:
    if first.step_id != second.step_id:
        return False
    one, other = first.step_delta, second.step_delta
    return one.part == other.part and one.call_id == other.call_id and one.attempt == other.attempt


def _join(run: list[event_pb2.StepEvent]) -> event_pb2.StepEvent:
    if len(run) == 1:
        return run[0]
    last = run[-1]
    joined = event_pb2.StepEvent(
        first_sequence=run[0].first_sequence,
        sequence=last.sequence,
        turn_id=last.turn_id,
        step_id=last.step_id,
        event_time=run[0].event_time,
        format=last.format,
        step_delta=last.step_delta,
    )
    joined.step_delta.offset = run[0].step_delta.offset
    joined.step_delta.text = "".join(event.step_delta.text for event in run)
    return joined
