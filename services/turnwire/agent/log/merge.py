"""Neighbouring deltas of one text, merged: for slow readers, and for the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.v1 import event_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MERGED_TEXT_LIMIT = 64 * 1024
"""The longest text of a merged delta, in characters: four bytes each are 256 KiB, the most a stored event may have."""


def merged(events: Iterable[event_pb2.StepEvent], limit: int = MERGED_TEXT_LIMIT) -> Iterator[event_pb2.StepEvent]:
    """Yields the events with neighbouring deltas of one text joined; their ranges cover the same numbers."""
    run: list[event_pb2.StepEvent] = []
    size = 0
    for event in events:
        joins = bool(run) and _same_text(run[-1], event) and size + len(event.step_delta.text) <= limit
        if run and not joins:
            yield _join(run)
            run, size = [], 0
        if event.WhichOneof("payload") == "step_delta":
            run.append(event)
            size += len(event.step_delta.text)
        else:
            yield event
    if run:
        yield _join(run)


def pieces(text: str, limit: int = MERGED_TEXT_LIMIT) -> Iterator[str]:
    """Yields a text in pieces that fit an event; at least one, whole code points."""
    if len(text) <= limit:
        yield text
        return
    for start in range(0, len(text), limit):
        yield text[start : start + limit]


def _same_text(first: event_pb2.StepEvent, second: event_pb2.StepEvent) -> bool:
    if second.WhichOneof("payload") != "step_delta" or first.step_id != second.step_id:
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
