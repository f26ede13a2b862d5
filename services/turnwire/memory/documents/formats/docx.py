"""DOCX: the paragraphs, headings and tables of a text document, by python-docx."""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING, Any

import docx
from docx.oxml.ns import qn

from turnwire.memory.documents.document import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnwire.memory.documents.document import Limits
    from turnwire.memory.documents.sections import Sections

_HEADING = re.compile(r"heading (?P<level>[1-9])", re.IGNORECASE)
_SMALL = 1024 * 1024
_TITLE_LEVEL = 0
# An entity can grow without bound, and the format has no use for it.
_DOCTYPES = tuple("<!DOCTYPE".encode(charset) for charset in ("utf-8", "utf-16-le", "utf-16-be"))
_PARAGRAPH, _TABLE, _ROW, _CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
_TEXT, _TAB = qn("w:t"), qn("w:tab")
_BREAKS = frozenset({qn("w:br"), qn("w:cr")})
# What was deleted or moved away, and the second form of a picture or text box for old programs.
_UNSEEN = frozenset(
    {qn("w:del"), qn("w:moveFrom"), "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"}
)
_PROPERTIES = frozenset({qn("w:pPr"), qn("w:rPr")})


def read(data: bytes, *, charset: str, into: Sections, limits: Limits) -> str:
    """Adds the body, in order; the title is that of the properties, else the paragraph in the style of titles.

    Notes, comments, and what repeats at the top and bottom of pages are not read.
    """
    del charset
    _check(data, limits)
    document = docx.Document(io.BytesIO(data))
    levels, lists = _styles(document)
    title = str(document.core_properties.title or "")
    for block in _blocks(document.element.body):
        if block.tag == _TABLE:
            _add_table(block, into)
            continue
        text = _text(block)
        style = _style(block)
        level = levels.get(style)
        if level is None:
            into.add(f"- {text}" if text.strip() and style in lists else text, line_of="list" if style in lists else "")
        else:
            into.heading(level, text)
            title = title or (text if level == _TITLE_LEVEL else "")
    return title


def _check(data: bytes, limits: Limits) -> None:
    """Refuses what grows beyond measure when it is unpacked, before it is."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise Refused(f"it is a broken packed file ({error})") from None
    with archive:
        members = archive.infolist()
        if len(members) > limits.members:
            raise Refused(f"it holds {len(members)} files, and {limits.members} are read", limit="members")
        # No member gives more than it says here: whoever unpacks stops there.
        if sum(member.file_size for member in members) > limits.unpacked_bytes:
            raise Refused(f"it unpacks to more than {limits.unpacked_bytes} bytes", limit="unpacked_bytes")
        for member in members:
            if member.file_size > max(_SMALL, member.compress_size * limits.ratio):
                raise Refused(f"a file in it unpacks to more than {limits.ratio} times its size", limit="ratio")
            if member.flag_bits & 1:
                raise Refused("it is encrypted: save it without a password")
            if member.filename.lower().endswith((".xml", ".rels")):
                content = archive.read(member)
                if any(mark in content for mark in _DOCTYPES):
                    raise Refused("it declares entities, which documents of its type do not have", limit="entities")


def _styles(document: Any) -> tuple[dict[str, int], set[str]]:
    """Returns the styles that are headings, with their levels, and those of lists; by their ids in the file."""
    levels: dict[str, int] = {}
    lists: set[str] = set()
    for style in document.styles.element.iter(qn("w:style")):
        identifier = style.get(qn("w:styleId"), "")
        named = style.find(qn("w:name"))
        name = "" if named is None else named.get(qn("w:val"), "")
        heading = _HEADING.fullmatch(name)
        if heading:
            levels[identifier] = int(heading["level"])
        elif name.lower() == "title":
            levels[identifier] = _TITLE_LEVEL
        elif name.lower().startswith("list "):
            lists.add(identifier)
    return levels, lists


def _style(paragraph: Any) -> str:
    found = paragraph.find(f"{qn('w:pPr')}/{qn('w:pStyle')}")
    return "" if found is None else found.get(qn("w:val"), "")


def _blocks(parent: Any) -> Iterator[Any]:
    """Yields the paragraphs and tables of a part, also those in content controls and accepted changes."""
    for child in parent:
        if child.tag in {_PARAGRAPH, _TABLE}:
            yield child
        elif isinstance(child.tag, str) and child.tag not in _UNSEEN:
            yield from _blocks(child)


def _text(element: Any) -> str:
    """Returns what is seen of a paragraph."""
    found: list[str] = []
    for child in element:
        if child.tag == _TEXT:
            found.append(child.text or "")
        elif child.tag == _TAB:
            found.append("\t")
        elif child.tag in _BREAKS:
            found.append("\n")
        elif isinstance(child.tag, str) and child.tag not in _UNSEEN and child.tag not in _PROPERTIES:
            if child.tag == _PARAGRAPH:
                # One of a text box.
                found.append("\n")
            found.append(_text(child))
    return "".join(found)


def _add_table(table: Any, into: Sections) -> None:
    """Adds a line a row. Cells are taken as they stand: one that says it spans a million columns is one."""
    for row in _within(table, _ROW):
        cells = [" ".join(_cell(cell).split()) for cell in _within(row, _CELL)]
        if any(cells):
            into.add(" | ".join(cells), line_of="table")


def _cell(cell: Any) -> str:
    """Returns what is seen of a cell, with the tables in it."""
    found: list[str] = []
    for block in _blocks(cell):
        if block.tag == _PARAGRAPH:
            found.append(_text(block))
        else:
            found += [_cell(inner) for row in _within(block, _ROW) for inner in _within(row, _CELL)]
    return " ".join(found)


def _within(parent: Any, wanted: str) -> Iterator[Any]:
    """Yields the rows of a table or the cells of a row, also those in content controls."""
    for child in parent:
        if child.tag == wanted:
            yield child
        elif isinstance(child.tag, str) and child.tag not in _UNSEEN and child.tag not in {_TABLE, _CELL, _PARAGRAPH}:
            yield from _within(child, wanted)
