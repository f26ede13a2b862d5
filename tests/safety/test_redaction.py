"""Redactions of several shields on one text: nothing hidden comes to light again, nothing else changes."""

from __future__ import annotations

import random
from itertools import pairwise

from tests.safety.calling import said
from turnwire.common.v1 import message_pb2, shield_pb2
from turnwire.safety.redaction import merged, redacted, replaced


def _span(start: int, end: int, replacement: str = "[x]", *, message: int = 0, part: int = 0) -> shield_pb2.Redaction:
    return shield_pb2.Redaction(
        message_index=message,
        part_index=part,
        start_byte=start,
        end_byte=end,
        replacement=replacement,
        category=replacement.strip("[]"),
    )


def test_spans_are_replaced_by_bytes_of_the_text_as_it_was():
    text = "für 4111, für 4222."
    data = text.encode()
    first, second = data.index(b"4111"), data.index(b"4222")

    assert "für [a], für [bb]." == replaced(
        text, merged([_span(second, second + 4, "[bb]"), _span(first, first + 4, "[a]")])
    )


def test_overlapping_spans_become_one_with_the_words_of_the_longest():
    (one,) = merged([_span(2, 6, "[short]"), _span(4, 12, "[long]"), _span(11, 13, "[end]")])

    assert (2, 13, "[long]", "long") == (one.start_byte, one.end_byte, one.replacement, one.category)


def test_of_spans_as_long_the_first_given_speaks():
    (one,) = merged([_span(0, 4, "[first]"), _span(0, 4, "[second]")])

    assert "[first]" == one.replacement


def test_neighbours_stay_apart():
    assert 2 == len(merged([_span(0, 4), _span(4, 8)]))


def test_parts_and_messages_are_apart():
    messages = [
        message_pb2.Message(role=message_pb2.ROLE_USER, parts=[_text("abc"), _text("abc")]),
        said("abc", provenance=message_pb2.PROVENANCE_RETRIEVED, source="doc"),
    ]

    result = redacted(messages, [_span(0, 2, "-", part=1), _span(1, 3, "+", message=1)])

    assert ["abc", "-c", "a+"] == [part.text for message in result for part in message.parts]
    assert ("doc", message_pb2.PROVENANCE_RETRIEVED) == (result[1].parts[0].source, result[1].parts[0].provenance)
    assert "abc" == messages[1].parts[0].text


def test_nothing_replaced_gives_no_messages():
    assert [] == redacted([said("abc")], [])


def test_whatever_is_hidden_by_any_stays_hidden_and_all_else_stays():
    draw = random.Random(7)
    for _ in range(500):
        text = "".join(chr(ord("a") + index % 26) for index in range(draw.randrange(1, 60)))
        spans = [
            _span(start, draw.randrange(start + 1, len(text) + 1), draw.choice(["", "#", "##"]))
            for start in (draw.randrange(len(text)) for _ in range(draw.randrange(1, 6)))
        ]
        hidden = {place for each in spans for place in range(each.start_byte, each.end_byte)}
        kept = "".join(character for place, character in enumerate(text) if place not in hidden)
        joined = merged(spans)

        assert kept == replaced(text, joined).replace("#", "")
        assert all(left.end_byte <= right.start_byte for left, right in pairwise(joined))


def _text(text: str) -> message_pb2.ContentPart:
    return message_pb2.ContentPart(text=text)
