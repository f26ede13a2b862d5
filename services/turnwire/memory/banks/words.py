"""Full text by SQLite's FTS5: questions in plain language, and scores from 0 to 1."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.runtime.storage import Row, Transaction

TOKENIZER = "porter unicode61 remove_diacritics 2"
_MOST_WORDS = 64
_WORD = re.compile(r"\w+")
_STOP = frozenset(
    _WORD.findall(
        "a an and are as at be but by can do does did for from had has have how i if in into is it its me my no not of"
        " on or our so that the their there these they this to was we were what when where which who why will with you"
        " your"
    )
)
"""Words that say nothing of what a text is about; the ranking gives them next to no weight anyway."""


def words(text: str) -> list[str]:
    """Returns the different words of a question, at most 64, without those that mean nothing.

    Where nothing else is left, they are all there is to go by.
    """
    found = list(dict.fromkeys(_WORD.findall(unicodedata.normalize("NFKC", text).lower())))
    return ([word for word in found if word not in _STOP] or found)[:_MOST_WORDS]


def expression(found: Sequence[str]) -> str:
    """Returns the FTS5 expression for texts with any of these words; no character of them is syntax."""
    return " OR ".join(quoted(word) for word in found)


def quoted(text: str) -> str:
    """Returns a text as a string of FTS5."""
    return '"' + text.replace('"', '""') + '"'


def phrases(text: str) -> list[str]:
    """Returns what a question may mention by name: its words and runs of up to five of them, longest first.

    A word here is what stands between spaces, without the punctuation around it: names may hold points and dashes.
    """
    parts = [part for part in (raw.strip("\"'`.,;:!?()[]{}<>") for raw in text.split()) if part][: 2 * _MOST_WORDS]
    runs = [" ".join(parts[start : start + length]) for length in range(5, 0, -1) for start in range(len(parts))]
    whole = text.strip()
    return list(dict.fromkeys([whole, *(run for run in runs if run.lower() not in _STOP)]))


async def coverage(tx: Transaction, table: str, rowid: int, found: Sequence[str]) -> float:
    """Returns which share of the words stands in a row, as the table's own tokenizer reads them."""
    count = 0
    for word in found:
        sql = f"SELECT 1 FROM {table} WHERE {table} MATCH $1 AND rowid = $2"  # noqa: S608 - a name of our own
        count += await tx.fetchrow(sql, quoted(word), rowid) is not None
    return count / len(found)


def scores(rows: Sequence[Row], share: float) -> list[float]:
    """Returns a score for each row (rank last, FTS5's: negative, best first).

    The first has the share of the question's words that it holds, the others the part of it that their BM25 is of the
    first's: BM25 itself has no scale, and nears 0 in small banks.
    """
    ranks = [-float(row[-1] or 0.0) for row in rows]
    best = max(ranks, default=0.0)
    return [share * (rank / best if best > 0 else 1.0) for rank in ranks]
