"""CSV: each row as `header: value` pairs, so that a row says by itself what it is about."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from turnwire.memory.documents.charset import decoded
from turnwire.memory.documents.document import Refused

if TYPE_CHECKING:
    from turnwire.memory.documents.document import Limits
    from turnwire.memory.documents.sections import Sections

_DELIMITERS = ",;\t|"
_LOOKED_AT = 64 * 1024


def read(data: bytes, *, charset: str, into: Sections, limits: Limits) -> str:
    """Adds a line for each row below the first, which names the columns; it has no title."""
    text = decoded(data, charset)
    csv.field_size_limit(limits.cell_bytes)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        header = [" ".join(name.split()) for name in next(rows, [])]
        any_row = False
        for row in rows:
            pairs = [_pair(header, number, value) for number, value in enumerate(row) if value.strip()]
            if pairs:
                any_row = True
                into.add("; ".join(pairs), line_of="table")
    except csv.Error as error:
        if "field limit" in str(error):
            raise Refused(f"a cell is larger than {limits.cell_bytes} bytes", limit="cell_bytes") from None
        raise Refused(f"line {rows.line_num} is no CSV: {error}") from None
    if not any_row:
        # One line alone names nothing.
        into.add("; ".join(header))
    return ""


def _pair(header: list[str], number: int, value: str) -> str:
    name = header[number] if number < len(header) and header[number] else f"column {number + 1}"
    return f"{name}: {' '.join(value.split())}"


def _delimiter(text: str) -> str:
    """Returns what stands most often between the cells of the first line.

    The standard library's own guess takes quadratic time on some texts.
    """
    counts = dict.fromkeys(_DELIMITERS, 0)
    quoted = False
    for character in text[:_LOOKED_AT].lstrip():
        if character == '"':
            quoted = not quoted
        elif character == "\n" and not quoted:
            break
        elif not quoted and character in counts:
            counts[character] += 1
    return max(counts, key=lambda delimiter: counts[delimiter])
