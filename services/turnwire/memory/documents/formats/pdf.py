"""PDF: the text of each page, by pypdf."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pypdf import PasswordType, PdfReader
from pypdf.errors import DependencyError, PyPdfError

from turnwire.memory.documents.document import Refused

if TYPE_CHECKING:
    from turnwire.memory.documents.document import Limits
    from turnwire.memory.documents.sections import Sections


def read(data: bytes, *, charset: str, into: Sections, limits: Limits) -> str:
    """Adds the pages; the title is that of the document's properties."""
    del charset
    reader = PdfReader(io.BytesIO(data), strict=False)
    _open(reader)
    count = len(reader.pages)
    if count > limits.pages:
        raise Refused(f"it has {count} pages, and {limits.pages} are read", limit="pages")
    for number in range(count):
        into.page(number + 1)
        try:
            text = reader.pages[number].extract_text()
        except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            # Without the page the rest would pass for the whole.
            what = f"{type(error).__name__}: {error}"[:200]
            raise Refused(f"its page {number + 1} cannot be read ({what})") from None
        into.add(text)
    return _title(reader)


def _open(reader: PdfReader) -> None:
    """Opens what anybody may read."""
    if not reader.is_encrypted:
        return
    try:
        opened = reader.decrypt("")
    except (DependencyError, NotImplementedError):
        raise Refused("it is encrypted in a way that is not read here: save it without a password") from None
    if opened == PasswordType.NOT_DECRYPTED:
        raise Refused("it is encrypted: save it without a password")


def _title(reader: PdfReader) -> str:
    try:
        return str((reader.metadata and reader.metadata.title) or "")
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError):
        # Properties are often broken where the pages are sound.
        return ""
