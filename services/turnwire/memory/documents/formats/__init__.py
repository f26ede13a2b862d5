"""The formats that are read. Adding one is a module with a `read` and a line of this table."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from turnwire.memory.documents.document import Limits
    from turnwire.memory.documents.sections import Sections


class Read(Protocol):
    """Adds the text of a document to `into`, and returns its title, empty where it has none.

    Raises:
        Refused: it cannot be read, or passes a limit.
    """

    def __call__(self, data: bytes, *, charset: str, into: Sections, limits: Limits) -> str: ...


@dataclass(frozen=True, slots=True)
class Format:
    """A format: what it is called, and what reads it."""

    mime_type: str
    aliases: frozenset[str]
    extensions: frozenset[str]
    module: str
    is_text: bool = True
    """Binary formats are known by their first bytes; of texts the declaration and the name decide."""

    def reader(self) -> Read:
        """Returns what reads it; its library is loaded with the first document."""
        return importlib.import_module(f"{__name__}.{self.module}").read


def _format(mime_type: str, module: str, extensions: str, *aliases: str, is_text: bool = True) -> Format:
    return Format(mime_type, frozenset(aliases), frozenset(extensions.split()), module, is_text)


PLAIN = _format("text/plain", "text", "txt text log")
HTML = _format("text/html", "html", "html htm xhtml", "application/xhtml+xml")
PDF = _format("application/pdf", "pdf", "pdf", "application/x-pdf", is_text=False)
DOCX = _format("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx", "docx", is_text=False)
FORMATS = (
    PLAIN,
    _format("text/markdown", "markdown", "md markdown", "text/x-markdown"),
    HTML,
    PDF,
    DOCX,
    _format("text/csv", "csv", "csv tsv", "text/tab-separated-values", "application/csv"),
)
