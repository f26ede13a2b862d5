"""Markdown: its source as it stands, which models read well, under the headings that markdown-it finds in it."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from turnwire.memory.documents.charset import decoded

if TYPE_CHECKING:
    from markdown_it.token import Token

    from turnwire.memory.documents.document import Limits
    from turnwire.memory.documents.sections import Sections

_FRONT_MATTER_TITLE = re.compile(r"^title:[ \t]*(?P<title>[^\n]*)$", re.MULTILINE)
_LONGEST_FRONT_MATTER = 200
"""Lines."""
_LONGEST_HEADING = 2_000


def read(data: bytes, *, charset: str, into: Sections, limits: Limits) -> str:
    """Adds each heading with what stands below it; the title is that of the front matter, else the first heading."""
    del limits
    source = decoded(data, charset).replace("\r\n", "\n").replace("\r", "\n")
    front, source = _front_matter(source)
    lines = source.split("\n")
    # Blocks only: what is inside of a paragraph matters for headings alone.
    blocks = MarkdownIt("commonmark").disable("inline")
    inline = MarkdownIt("commonmark")
    titled = _FRONT_MATTER_TITLE.search(front)
    title = titled["title"].strip().strip("\"'") if titled else ""
    tokens = blocks.parse(source)
    done = 0
    for opening, content in pairwise(tokens):
        # A heading within a quotation or a list is one of somebody else, or none.
        if opening.type != "heading_open" or opening.level or opening.map is None:
            continue
        start, end = opening.map
        words = _words(inline.parseInline(content.content[:_LONGEST_HEADING]))
        into.add("\n".join(lines[done:start]))
        into.heading(int(opening.tag[1:]), words, source="\n".join(lines[start:end]))
        title = title or words
        done = end
    into.add("\n".join(lines[done:]))
    return title


def _front_matter(source: str) -> tuple[str, str]:
    """Returns the settings that site generators keep above a text, and the text."""
    if not source.startswith("---\n"):
        return "", source
    lines = source.split("\n", _LONGEST_FRONT_MATTER)
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() in {"---", "..."}:
            return "\n".join(lines[1:number]), "\n".join(lines[number + 1 :])
    return "", source


def _words(tokens: list[Token]) -> str:
    """Returns a heading as it is seen."""
    found: list[str] = []
    for token in tokens:
        for child in token.children or []:
            found.append(" " if child.type in {"softbreak", "hardbreak"} else child.content)
    return "".join(found)
