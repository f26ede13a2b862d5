"""Forms of a text: what a reader sees, whatever characters it is written with.

A form is UTF-8 like its source, and knows for each of its bytes which bytes of the source it came from. So a finding in
the form has an exact span in the source, on the borders of code points.

- `plain`: compatible characters unified (NFKC: full-width digits, ligatures, mathematical letters), invisible
  characters taken out.
- `folded`: plain, without case.
- `skeleton`: folded, without accents, and with look-alikes of other scripts as the Latin letters they look like.
- `leet` variants: skeleton, with digits and signs within words as the letters they stand for.
- `joined`: words that were spaced out letter by letter, put together.

A text in ASCII is its own form but for case, and costs nothing.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from turnwire.safety.text.lookalikes import INVISIBLE, LOOKALIKES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DIGIT_LETTERS = bytes.maketrans(b"01345789@$!|+", b"oieastbgasiit")
"""What stands for which letter; the 1 is an i here, and an l in the second variant."""
_DIGIT_LETTERS_L = bytes.maketrans(b"01345789@$!|+", b"oleastbgasllt")
_WORD = re.compile(rb"[a-z0-9@$!|+]+")
_LEET = re.compile(rb"[a-z][0-9@$!|+]|[0-9@$!|+][a-z]")
_SPACED = re.compile(rb"(?<![a-z0-9])[a-z](?:[ ._*/-]{1,3}[a-z](?![a-z0-9])){3,}")
_GAP = re.compile(rb"[^a-z]+")


class Form:
    """A form of a text, and where each of its bytes came from."""

    __slots__ = ("_ends", "_starts", "data")

    def __init__(self, data: bytes, starts: array[int] | None = None, ends: array[int] | None = None) -> None:
        """Without `starts` and `ends` each byte came from the same place."""
        self.data = data
        self._starts = starts
        self._ends = ends

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Returns the span of the source that a span of the form, not empty, came from."""
        if self._starts is None or self._ends is None:
            return start, end
        return self._starts[start], self._ends[end - 1]

    def replaced(self, data: bytes) -> Form:
        """Returns the form with other bytes, as many, at the same places."""
        return Form(data, self._starts, self._ends)

    def kept(self, pieces: Iterator[tuple[int, int]]) -> Form:
        """Returns the form of these spans alone."""
        data = bytearray()
        starts: array[int] = array("L")
        ends: array[int] = array("L")
        for start, end in pieces:
            data += self.data[start:end]
            if self._starts is None or self._ends is None:
                starts.extend(range(start, end))
                ends.extend(range(start + 1, end + 1))
            else:
                starts.extend(self._starts[start:end])
                ends.extend(self._ends[start:end])
        return Form(bytes(data), starts, ends)


def plain(text: str) -> Form:
    """Returns the text with compatible characters unified and without invisible ones."""
    if text.isascii():
        return Form(text.encode())
    return _mapped(text, _plain_cluster, None)


def folded(text: str) -> Form:
    """Returns the plain form without case."""
    if text.isascii():
        return Form(text.lower().encode())
    return _mapped(text, _folded_cluster, str.lower)


def skeleton(text: str) -> Form:
    """Returns the folded form without accents, look-alikes as Latin letters."""
    if text.isascii():
        return Form(text.lower().encode())
    return _mapped(text, _skeleton_cluster, str.lower)


def leet(form: Form) -> list[Form]:
    """Returns the variants of a skeleton in which digits are letters; none when it holds no such word."""
    if _LEET.search(form.data) is None:
        return []
    variants = [
        _WORD.sub(lambda match, table=table: _as_letters(match.group(), table), form.data)
        for table in (_DIGIT_LETTERS, _DIGIT_LETTERS_L)
    ]
    return [form.replaced(data) for data in dict.fromkeys(variants)]


def joined(form: Form) -> list[Form]:
    """Returns the variant of a skeleton in which spaced out words are whole; none when it holds no such word."""
    if _SPACED.search(form.data) is None:
        return []
    return [form.kept(_without_spacing(form.data))]


def readings(text: str, *, leetspeak: bool = False, spaced: bool = False) -> list[Form]:
    """Returns the forms in which something may be written in a text, each once."""
    bare = skeleton(text)
    forms = [folded(text), bare]
    if leetspeak:
        forms += leet(bare)
    if spaced:
        forms += joined(bare)
    return list({form.data: form for form in forms}.values())


def fold_word(word: str) -> str:
    """Returns a word as it stands in a folded form."""
    return folded(word).data.decode()


def bare_word(word: str) -> str:
    """Returns a word as it stands in a skeleton."""
    return skeleton(word).data.decode()


def _mapped(text: str, cluster: Callable[[str], bytes], ascii_run: Callable[[str], str] | None) -> Form:
    """Each cluster (a character and the marks on it) is brought into its form as a whole."""
    data = bytearray()
    starts: array[int] = array("L")
    ends: array[int] = array("L")
    position = 0
    for match in _clusters().finditer(text):
        piece = match.group()
        if piece.isascii():
            written = (piece if ascii_run is None else ascii_run(piece)).encode()
            end = position + len(written)
            starts.extend(range(position, end))
            ends.extend(range(position + 1, end + 1))
        else:
            written = cluster(piece)
            end = position + len(piece.encode())
            starts.extend([position] * len(written))
            ends.extend([end] * len(written))
        data += written
        position = end
    return Form(bytes(data), starts, ends)


@lru_cache(maxsize=1)
def _clusters() -> re.Pattern[str]:
    marks = [code for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code))]
    # Vowels and final consonants of Hangul compose with what stands before them.
    marks += range(0x1160, 0x1200)
    ranges: list[list[int]] = []
    for code in sorted(marks):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    inner = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
    return re.compile(f"(?:[\\x00-\\x7f](?![{inner}]))+|[\\s\\S][{inner}]{{0,32}}")


@lru_cache(maxsize=8192)
def _plain_cluster(piece: str) -> bytes:
    return unicodedata.normalize("NFKC", piece.translate(INVISIBLE)).translate(INVISIBLE).encode()


@lru_cache(maxsize=8192)
def _folded_cluster(piece: str) -> bytes:
    return unicodedata.normalize("NFKC", _plain_cluster(piece).decode().casefold()).encode()


@lru_cache(maxsize=8192)
def _skeleton_cluster(piece: str) -> bytes:
    seen = piece.translate(INVISIBLE).translate(LOOKALIKES)
    apart = unicodedata.normalize("NFKD", seen).casefold().translate(INVISIBLE)
    bare = "".join(character for character in apart if not unicodedata.combining(character))
    return unicodedata.normalize("NFKC", bare.translate(LOOKALIKES).casefold()).encode()


def _as_letters(word: bytes, table: bytes) -> bytes:
    return word.translate(table) if _LEET.search(word) else word


def _without_spacing(data: bytes) -> Iterator[tuple[int, int]]:
    """What stands between most letters is taken out; what stands there less often ends a word, and stays."""
    position = 0
    for match in _SPACED.finditer(data):
        gaps = list(_GAP.finditer(data, match.start(), match.end()))
        usual = Counter(gap.group() for gap in gaps).most_common(1)[0][0]
        for gap in gaps:
            if gap.group() == usual:
                yield position, gap.start()
                position = gap.end()
    yield position, len(data)
