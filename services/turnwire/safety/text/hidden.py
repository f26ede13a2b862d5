"""What is hidden in a text: written in a code that a model can read, or with characters that nobody sees."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from turnwire.safety.text.patterns import compiled, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from turnwire.safety.text.patterns import Stop

MOST_BYTES = 256 * 1024
"""So many bytes of each code are read in one text."""
_TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f")
_UNSEEN = re.compile("[\u200b\u2060-\u2064\u180e\u00ad]{8,}|[\ufe00-\ufe0f\U000e0100-\U000e01ef]{8,}")


@dataclass(frozen=True, slots=True)
class Hidden:
    """A text within a text, at these bytes of it."""

    start: int
    end: int
    text: str
    unseen: bool
    """True when a reader sees nothing at all of it."""


def hidden(text: str, stop: Stop) -> Iterator[Hidden]:
    """Returns the texts that are hidden in a text, code by code."""
    data = text.encode()
    for pattern, decode in _CODES:
        left = MOST_BYTES
        for start, end in spans(pattern, data, stop, group=1):
            if left <= 0:
                break
            run = data[start : min(end, start + left)]
            left -= len(run)
            decoded = _readable(decode, run)
            if decoded:
                yield Hidden(start, end, decoded, unseen=False)
    if text.isascii():
        return
    flags = {match.end() for match in _FLAG.finditer(text)}
    for match, start, end in _placed(text, _TAGS):
        # The flags of England, Scotland and Wales are written with the same characters.
        if match.end() + 1 not in flags:
            said = "".join(chr(ord(character) - 0xE0000) for character in match.group()[:MOST_BYTES])
            yield Hidden(start, end, said, unseen=True)


def unseen_runs(text: str) -> Iterator[tuple[int, int]]:
    """Returns the spans of many invisible characters in a row, which no writing needs."""
    if not text.isascii():
        for _, start, end in _placed(text, _UNSEEN):
            yield start, end


def _placed(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[re.Match[str], int, int]]:
    """Matches with their places in bytes, in one pass over the text."""
    character = position = 0
    for match in pattern.finditer(text):
        start = position + len(text[character : match.start()].encode())
        character, position = match.end(), start + len(match.group().encode())
        yield match, start, position


def _readable(decode: Callable[[bytes], bytes], run: bytes) -> str:
    try:
        text = decode(run).decode()
    except (binascii.Error, ValueError):
        return ""
    printable = sum(character.isprintable() or character in "\n\t\r" for character in text)
    return text if printable >= len(text) * 0.95 else ""


def _base64(run: bytes) -> bytes:
    whole = run.rstrip(b"=")
    whole = whole[:-1] if len(whole) % 4 == 1 else whole
    return base64.b64decode(whole.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(whole) % 4))


def _base32(run: bytes) -> bytes:
    whole = run.rstrip(b"=")
    whole = whole[: len(whole) - (len(whole) % 8 in {1, 3, 6})]
    return base64.b32decode(whole + b"=" * (-len(whole) % 8))


def _hex(run: bytes) -> bytes:
    digits = re.sub(rb"0x|\\x|[\s:]", b"", run)
    return binascii.unhexlify(digits[: len(digits) // 2 * 2])


def _binary(run: bytes) -> bytes:
    digits = run.replace(b" ", b"")
    return bytes(int(digits[index : index + 8], 2) for index in range(0, len(digits) - 7, 8))


_CODES: tuple[tuple[Any, Callable[[bytes], bytes]], ...] = (
    (compiled(r"(?:^|[^A-Za-z0-9+/=_-])([A-Za-z0-9+/_-]{16,}={0,2})"), _base64),
    (compiled(r"(?:^|[^A-Z2-7=])([A-Z2-7]{24,}={0,6})(?:$|[^A-Za-z0-9=])"), _base32),
    (compiled(r"(?:^|[^0-9A-Za-z])((?:(?:0x|\\x)?[0-9a-fA-F]{2}[ :]?){12,})(?:$|[^0-9A-Za-z])"), _hex),
    (compiled(r"(?:^|[^01])((?:[01]{8} ?){8,})"), _binary),
    (compiled(r"((?:[!-$&-~]{0,40}%[0-9a-fA-F]{2}){3,}[!-~]{0,200})"), unquote_to_bytes),
)
