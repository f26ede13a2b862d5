"""Plain text: its paragraphs as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.memory.documents.charset import decoded

if TYPE_CHECKING:
    from turnwire.memory.documents.document import Limits
    from turnwire.memory.documents.sections import Sections


def read(data: bytes, *, charset: str, into: Sections, limits: Limits) -> str:
    """Adds the whole text; it has no title. Its only limit is that of all texts."""
    del limits
    into.add(decoded(data, charset))
    return ""
