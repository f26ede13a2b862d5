"""Chunks: pieces of a text of at most so many tokens, cut where a reader would, with an overlap.

A chunk lies on one page and under one heading. It ends, in its second half, at the end of a paragraph, else of a
sentence, a line or a word, whatever there is; the next begins at a sentence within the overlap, else at a line or word.
Whatever is to be seen of a text is in some chunk.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from turnwire.memory.documents.document import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnwire.memory.documents.sections import Section

_SEGMENT = 32 * 1024
"""So many characters are given to the tokenizer at once: what it returns is a hundred times as large."""
_LONGEST_WORD = 96
"""Encoders take longer words as one unknown token: they are counted in pieces of this length."""
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
_CHARACTERS_PER_TOKEN = 16
"""A chunk has at most so many characters for each token it may have: scripts that an encoder knows none of are
thousands of characters in a token."""
LEAST_TOKENS = 16
"""Chunks are not asked for smaller than this: a single character can be several tokens."""
_SENTENCE_ENDS = frozenset(".!?…。！？؟।")
_CLOSING = frozenset("\"')]}»”’」』")

_STRAY = 1024
"""A chunk has at most so many characters at its ends that belong to no token."""
_GAP = 64
"""So much of what lies between two tokens is looked at."""
_WORD, _LINE, _SENTENCE, _PARAGRAPH = 1, 2, 3, 4


class Tokens(Protocol):
    """Counts as an embedding model does."""

    def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        """Returns where each token begins and ends, in characters, without special tokens."""
        ...

    def count(self, text: str) -> int:
        """Returns how many tokens a text has, without special ones."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """A chunk as a stretch of the text, in characters."""

    start: int
    end: int
    tokens: int
    section: Section


def chunked(
    text: str, sections: Sequence[Section], tokens: Tokens, *, chunk_size_tokens: int, overlap_tokens: int
) -> Iterator[Span]:
    """Yields the chunks of a text, in order."""
    if chunk_size_tokens < LEAST_TOKENS or not 0 <= overlap_tokens < chunk_size_tokens:
        raise Refused(
            f"chunks of {chunk_size_tokens} tokens with an overlap of {overlap_tokens} cannot be made: chunks have at "
            f"least {LEAST_TOKENS} tokens and more than their overlap",
        )
    for section in sections:
        yield from _Cutting(text, section, tokens, chunk_size_tokens, overlap_tokens).spans()


class _Cutting:
    """The work on one section."""

    def __init__(self, text: str, section: Section, tokens: Tokens, size: int, overlap: int) -> None:
        self._text = text
        self._section = section
        self._tokens = tokens
        self._size = size
        self._overlap = overlap
        self._starts = array("Q")
        self._ends = array("Q")
        self._ranks = bytearray()
        """How good a border lies before each token."""

    def spans(self) -> Iterator[Span]:
        self._read()
        count = len(self._starts)
        first, done = 0, 0
        while done < count:
            most = min(count, first + self._size)
            # Ends never fall, so the widest chunk is found by halving.
            farthest = self._starts[first] + self._size * _CHARACTERS_PER_TOKEN
            most = max(min(most, bisect_left(self._ends, farthest, first, most)), first + 1)
            if most <= done:
                # The overlap leaves no room for anything new.
                first = done
                continue
            last = most if most == count else self._cut(max(first + (most - first) // 2, done + 1), most)
            span = self._span(first, last)
            while span.tokens > self._size and last > done + 1:
                # A word that was cut counts more than the tokens of its parts did.
                last = max(done + 1, last - max(1, span.tokens - self._size))
                span = self._span(first, last)
            if span.tokens > self._size and first < done:
                first = done
                continue
            yield span
            done = last
            first = self._next(first, done)

    def _read(self) -> None:
        """Finds the tokens of the section, piece by piece."""
        position, end = self._section.start, self._section.end
        while position < end:
            stop = min(position + _SEGMENT, end)
            if stop < end:
                stop = self._space_before(position, stop)
            at = position
            for word in _LONG_WORD.finditer(self._text, position, stop):
                self._encode(at, word.start())
                for piece in range(word.start(), word.end(), _LONGEST_WORD):
                    self._encode(piece, min(piece + _LONGEST_WORD, word.end()))
                at = word.end()
            self._encode(at, stop)
            position = stop

    def _space_before(self, position: int, stop: int) -> int:
        """Returns the place after the last space of a segment; its end when it is one word."""
        for at in range(stop, position, -1):
            if self._text[at - 1].isspace():
                return at
        return stop

    def _encode(self, start: int, end: int) -> None:
        if start >= end:
            return
        previous = self._ends[-1] if self._ends else self._section.start
        for begin, finish in self._tokens.offsets(self._text[start:end]):
            # Several tokens of one character stand at one place; none goes back.
            at = max(start + begin, previous)
            self._ranks.append(_rank(self._text, previous, at))
            self._starts.append(at)
            previous = max(start + finish, at)
            self._ends.append(previous)

    def _span(self, first: int, last: int) -> Span:
        start, end = self._starts[first], self._ends[last - 1]
        # What is part of no token, an accent by itself say, stays with the token before it, or with the first one.
        if first == 0:
            start = max(self._section.start, start - _STRAY)
            while self._text[start].isspace():
                start += 1
        limit = self._starts[last] if last < len(self._starts) else self._section.end
        end = max(end, min(limit, end + _STRAY))
        while self._text[end - 1].isspace():
            end -= 1
        return Span(start, end, self._tokens.count(self._text[start:end]), self._section)

    def _cut(self, least: int, most: int) -> int:
        """Returns the best place for the end of a chunk: between two tokens, not before `least`."""
        ranks = self._ranks[least : most + 1]
        best = max(ranks, default=0)
        return least + ranks.rindex(best) if best else most

    def _next(self, first: int, done: int) -> int:
        """Returns where the chunk after one begins."""
        least = max(done - self._overlap, first + 1)
        if done >= len(self._starts) or least >= done:
            return done
        ranks = self._ranks[least:done]
        best = min(max(ranks), _SENTENCE)
        if not best:
            return done
        # The first sentence, line or word: the overlap is asked for as long as it may be.
        return next(place for place, rank in enumerate(ranks, least) if rank >= best)


def _rank(text: str, before: int, after: int) -> int:
    """Returns how good a border the gap between two tokens is."""
    if before == after:
        return 0
    gap = text[before : min(after, before + _GAP)]
    if not any(character.isspace() for character in gap):
        return 0
    if "\n\n" in gap:
        return _PARAGRAPH
    at = before - 1
    while at >= max(0, before - _GAP) and text[at] in _CLOSING:
        at -= 1
    if at >= 0 and text[at] in _SENTENCE_ENDS:
        return _SENTENCE
    return _LINE if "\n" in gap else _WORD
