"""HTML: the text that a reader of the page sees, by selectolax."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from selectolax.lexbor import LexborHTMLParser

from turnwire.memory.documents.charset import decoded
from turnwire.memory.documents.document import Refused

if TYPE_CHECKING:
    from turnwire.memory.documents.document import Limits
    from turnwire.memory.documents.sections import Sections


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


_TEXT = "-text"
_UNSEEN = _tags(
    "script style template noscript head svg math canvas audio video iframe object embed select datalist "
    "button textarea -comment -document !doctype"
)
_BLOCKS = _tags(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption "
    "figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p pre section "
    "summary table tbody tfoot thead tr ul"
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_SPACES = re.compile(r"\s+")
_CELL, _ITEM = " | ", "- "
_AROUND_CELL = re.compile(r"\n\|[ \n]?|[ ]\|\n")
_DECLARED = re.compile(rb"<meta\s[^>]{0,200}?charset\s*=\s*[\"']?\s*(?P<charset>[a-zA-Z0-9_-]{1,40})", re.IGNORECASE)
_LOOKED_AT = 1024

# Elements that stay open until they are closed, unlike paragraphs, items and cells. The parser's time grows with the
# square of the depth, so the depth is counted first; no page comes near the limit.
_TAG = re.compile(r"<(?P<end>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]*)")
_STAY_OPEN = _tags(
    "a abbr article aside b big blockquote center code details div em fieldset figure font footer form header "
    "i ins label main nav ol section small span strike strong sub sup table tt u ul svg g math template"
)
_DEEPEST = 5_000


def read(data: bytes, *, charset: str, into: Sections, limits: Limits) -> str:
    """Adds the text under its headings; the title is that of the page, else the first heading."""
    del limits
    if not charset and (found := _DECLARED.search(data[:_LOOKED_AT])):
        charset = found["charset"].decode()
    source = decoded(data, charset)
    _check_depth(source)
    page = LexborHTMLParser(source)
    named = page.css_first("head > title")
    title = "" if named is None else named.text(deep=True)
    seen = _Seen(into)
    if page.root is not None:
        _walk(page.root, seen)
    seen.end()
    return title if title.strip() else seen.first_heading


def _check_depth(source: str) -> None:
    depth = 0
    for tag in _TAG.finditer(source):
        if tag["name"].lower() in _STAY_OPEN:
            depth = max(0, depth - 1) if tag["end"] else depth + 1
            if depth > _DEEPEST:
                raise Refused(f"its elements are nested more than {_DEEPEST} deep", limit="depth")


def _walk(root: Any, seen: _Seen) -> None:
    """Goes through all nodes in order, without a call for each level of them."""
    node, depth = root, 0
    while True:
        if seen.enter(node):
            child = node.first_child
            if child is not None:
                node, depth = child, depth + 1
                continue
            seen.leave(node)
        while depth and node.next is None:
            node, depth = node.parent, depth - 1
            seen.leave(node)
        if not depth:
            return
        node = node.next


class _Seen:
    """Puts together what is seen, block by block."""

    def __init__(self, into: Sections) -> None:
        self._into = into
        self._parts: list[str] = []
        self._preserved = 0
        self._any_preserved = False
        self._items = 0
        self._rows = 0
        self.first_heading = ""

    def enter(self, node: Any) -> bool:
        """Takes a node; False when what is in it is not seen."""
        tag: str = node.tag
        if tag == _TEXT:
            self._take(node.text(deep=False))
            return False
        if tag in _UNSEEN or _is_hidden(node):
            return False
        if tag in _BLOCKS:
            self._break(tag)
        match tag:
            case "pre":
                self._preserved += 1
            case "li":
                self._items += 1
                self._parts[:] = [_ITEM]
            case "tr":
                self._rows += 1
            case "td" | "th":
                if any(not part.isspace() for part in self._parts):
                    self._parts.append(_CELL)
            case "br":
                self._parts.append("\n")
            case "img":
                self._take(f" {node.attributes.get('alt') or ''} ")
            case _:
                pass
        return True

    def leave(self, node: Any) -> None:
        """Ends a node that was entered."""
        tag: str = node.tag
        if tag in _HEADINGS:
            title = self._joined()
            self._into.heading(_HEADINGS[tag], title)
            self.first_heading = self.first_heading or title
        elif tag == "li":
            self.end()
        elif tag in _BLOCKS:
            self._break(tag)
        match tag:
            case "pre":
                self._preserved -= 1
            case "li":
                self._items -= 1
            case "tr":
                self._rows -= 1
            case _:
                pass

    def end(self) -> None:
        """Ends a block: a paragraph, or a line of a list or table."""
        self._into.add(self._joined(), line_of="table" if self._rows else "list" if self._items else "")

    def _break(self, tag: str) -> None:
        if tag != "li" and "".join(self._parts).strip() == _ITEM.strip():
            # The first block of an item stands beside its mark.
            return
        if self._rows and tag not in {"tr", "pre"} and tag not in _HEADINGS:
            # A row is a line, whatever its cells are made of.
            self._parts.append("\n")
        else:
            self.end()

    def _take(self, text: str) -> None:
        if self._preserved:
            self._any_preserved = True
            self._parts.append(text)
        else:
            self._parts.append(_SPACES.sub(" ", text))

    def _joined(self) -> str:
        text = "".join(self._parts)
        self._parts.clear()
        if not self._any_preserved:
            lines = (" ".join(line.split()) for line in text.split("\n"))
            text = "\n".join(line for line in lines if line)
            text = _AROUND_CELL.sub(" | ", text)
        self._any_preserved = False
        # An item of a list without anything in it.
        return "" if text.strip() in {"-", "|"} else text


def _is_hidden(node: Any) -> bool:
    attributes = node.attributes
    if not attributes:
        return False
    # What a page hides is often meant for machines that read it, not for its readers.
    return "hidden" in attributes or bool(_HIDDEN.search((attributes.get("style") or "")[:1_000]))
