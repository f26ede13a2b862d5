"""The text of a document while it is read: paragraphs in sections, clean, and never more than the limit."""

from __future__ import annotations

import re
from dataclasses import dataclass

from turnwire.memory.documents.document import Refused

# Line ends of all systems, and what no text has a use for: control characters, the marks of byte order.
_LINE_END = re.compile("\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_MANY_EMPTY_LINES = re.compile(r"\n{3,}")
_LONGEST_HEADING = 200


@dataclass(slots=True)
class Section:
    """A stretch of the text on one page and under one heading."""

    start: int
    """In characters."""
    end: int
    page: int
    heading: str
    only_heading: bool


class Sections:
    """Collects the text of a document."""

    def __init__(self, text_bytes: int) -> None:
        """Takes at most so many bytes of text."""
        self._limit = text_bytes
        self._bytes = 0
        self._characters = 0
        self._parts: list[str] = []
        self._sections: list[Section] = []
        self._above: list[tuple[int, str]] = []
        self._page = 0
        self._fresh = True
        self._line_of = ""

    def page(self, number: int) -> None:
        """What follows stands on this page."""
        self._page = number
        self._fresh = True

    def heading(self, level: int, title: str, *, source: str | None = None) -> None:
        """What follows stands under this heading; `source` is how the text has it where that is not the title."""
        title = shortened(title)
        if not title:
            return
        while self._above and self._above[-1][0] >= level:
            self._above.pop()
        self._above.append((level, title))
        if not self._sections or not self._sections[-1].only_heading or self._sections[-1].page != self._page:
            self._fresh = True
        else:
            # A heading right below another one: alone the first would be a chunk that says nothing.
            self._sections[-1].heading = self._heading()
        self._take(title if source is None else source, is_heading=True)

    def add(self, text: str, *, line_of: str = "") -> None:
        """Adds a paragraph, or several; lines of one thing, a list say, follow one another without an empty line."""
        self._take(text, is_heading=False, line_of=line_of)

    @property
    def text(self) -> str:
        """All that was added."""
        return "".join(self._parts)

    @property
    def all(self) -> list[Section]:
        """The sections, in order; they do not overlap."""
        return self._sections

    def _take(self, text: str, *, is_heading: bool, line_of: str = "") -> None:
        text = cleaned(text)
        if not text:
            return
        separator = (
            ("\n" if line_of and line_of == self._line_of and not self._fresh else "\n\n") if self._parts else ""
        )
        self._line_of = line_of
        heading = self._heading()
        self._bytes += len(separator) + len(text.encode())
        if self._bytes > self._limit:
            raise Refused(f"its text is longer than {self._limit} bytes", limit="text_bytes")
        start = self._characters + len(separator)
        end = start + len(text)
        if self._fresh:
            self._sections.append(Section(start, end, self._page, heading, is_heading))
            self._fresh = False
        else:
            self._sections[-1].end = end
            self._sections[-1].only_heading &= is_heading
        self._parts += (separator, text)
        self._characters = end

    def _heading(self) -> str:
        return " > ".join(title for _, title in self._above)


def cleaned(text: str) -> str:
    """Returns a text of whole characters, with plain line ends and nothing invisible at its borders."""
    text = _LINE_END.sub("\n", text)
    text = _NO_TEXT.sub("", text)
    # Halves of characters cannot be written in UTF-8.
    text = text.encode("utf-8", "replace").decode() if not text.isascii() else text
    # Not by a pattern: one that looks for spaces at an end takes quadratic time on long runs of them.
    text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    return _MANY_EMPTY_LINES.sub("\n\n", text).strip("\n")


def shortened(title: str) -> str:
    """Returns a title of one line and of bounded length."""
    title = " ".join(cleaned(title[: _LONGEST_HEADING * 4]).split())
    return title if len(title) <= _LONGEST_HEADING else f"{title[: _LONGEST_HEADING - 1]}…"
