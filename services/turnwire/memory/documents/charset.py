"""Text out of bytes: by the mark at their start, by what was declared, by what they fit."""

from __future__ import annotations

import codecs
import re

from turnwire.memory.documents.document import Refused

# The longer marks first: one of UTF-32 begins like one of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Python knows more names than these; some of the others are no character sets, and some take quadratic time.
_KNOWN = re.compile(
    r"utf-?8|utf-?16(-?[lb]e)?|utf-?32(-?[lb]e)?|(us-)?ascii|iso-?8859-?(1|2|3|4|5|6|7|8|9|10|11|13|14|15|16)|latin-?1"
    r"|(windows-|cp)125[0-8]|koi8-[ru]|macintosh|shift_jis|euc-jp|iso-2022-jp|gb2312|gbk|gb18030|big5|euc-kr",
    re.IGNORECASE,
)
_LATIN_1 = re.compile(r"iso-?8859-?1|latin-?1|(us-)?ascii", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_LOOKED_AT = 64 * 1024


def decoded(data: bytes, declared: str = "") -> str:
    """Returns the text of bytes.

    Raises:
        Refused: they are no text.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _checked(data[len(mark) :].decode(name, "replace"))
    if declared and _KNOWN.fullmatch(declared) and not _LATIN_1.fullmatch(declared):
        # A declaration that does not fit is no reason to lose the whole; what does not fit is marked.
        text = data.decode(declared, "replace")
        if text.count("\ufffd") <= len(text) // 100:
            return _checked(text)
    try:
        return _checked(data.decode())
    except UnicodeDecodeError:
        pass
    if b"\0" in data:
        raise Refused(
            "it is no text: its bytes are those of a program or a picture, or of a character set without mark"
        )
    try:
        # What is called Latin-1 is nearly always this, its superset by a few quotation marks.
        return _checked(data.decode("windows-1252"))
    except UnicodeDecodeError:
        return _checked(data.decode("latin-1"))


def _checked(text: str) -> str:
    """Returns a text that a person could have written."""
    beginning = text[:_LOOKED_AT]
    if "\0" in text or len(_CONTROL.findall(beginning)) > max(8, len(beginning) // 200):
        raise Refused("it is no text: it is full of control characters")
    return text
