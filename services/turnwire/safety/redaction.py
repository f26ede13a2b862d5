"""Spans that are replaced: merged within a text, over all shields, and put into the messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.common.v1 import message_pb2, shield_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def merged(redactions: Iterable[shield_pb2.Redaction]) -> list[shield_pb2.Redaction]:
    """Returns redactions that do not overlap, in the order of the content.

    Overlapping spans become one, from the first byte of them to the last: nothing that any of them hides comes to
    light again. It is replaced by what the longest of them says, the first given where several are as long.
    """
    result: list[shield_pb2.Redaction] = []
    longest = 0
    for each in sorted(redactions, key=_place):
        length = each.end_byte - each.start_byte
        last = result[-1] if result else None
        if last is None or _part(last) != _part(each) or each.start_byte >= last.end_byte:
            kept = shield_pb2.Redaction()
            kept.CopyFrom(each)
            result.append(kept)
            longest = length
            continue
        last.end_byte = max(last.end_byte, each.end_byte)
        if length > longest:
            last.replacement, last.category, longest = each.replacement, each.category, length
    return result


def redacted(
    messages: Sequence[message_pb2.Message], redactions: Sequence[shield_pb2.Redaction]
) -> list[message_pb2.Message]:
    """Returns the messages with the spans replaced; none when there is nothing to replace."""
    by_part: dict[tuple[int, int], list[shield_pb2.Redaction]] = {}
    for each in merged(redactions):
        by_part.setdefault(_part(each), []).append(each)
    if not by_part:
        return []
    result: list[message_pb2.Message] = []
    for index, message in enumerate(messages):
        copy = message_pb2.Message()
        copy.CopyFrom(message)
        for number, part in enumerate(copy.parts):
            found = by_part.get((index, number))
            if found:
                part.text = replaced(part.text, found)
        result.append(copy)
    return result


def replaced(text: str, redactions: Sequence[shield_pb2.Redaction]) -> str:
    """Returns a text with merged redactions of it carried out."""
    data = text.encode()
    pieces: list[bytes] = []
    position = 0
    for each in redactions:
        pieces += data[position : each.start_byte], each.replacement.encode()
        position = each.end_byte
    pieces.append(data[position:])
    return b"".join(pieces).decode()


def _part(redaction: shield_pb2.Redaction) -> tuple[int, int]:
    return redaction.message_index, redaction.part_index


def _place(redaction: shield_pb2.Redaction) -> tuple[int, int, int]:
    return redaction.message_index, redaction.part_index, redaction.start_byte
