"""Banks of the kind keyword: chunks, found by their words and ranked by BM25."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from turnwire.memory.banks import rows
from turnwire.memory.banks.port import Hit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.memory.banks.port import Entry, Place, Question
    from turnwire.runtime.storage import Transaction

_ROWS = "keyword_chunks"
TABLES = (
    f"""
    CREATE TABLE {_ROWS} (
        id INTEGER PRIMARY KEY,
        bank TEXT NOT NULL,
        revision TEXT NOT NULL,
        ordinal BIGINT NOT NULL,
        UNIQUE (bank, revision, ordinal)
    )
    """,
)


async def put(tx: Transaction, place: Place, entry: Entry) -> None:
    """Adds the chunks of a document."""
    for ordinal, text in enumerate(entry.texts):
        row = await tx.fetchrow(
            "INSERT INTO keyword_chunks (bank, revision, ordinal) VALUES ($1, $2, $3) RETURNING id",
            place.uid,
            entry.revision,
            ordinal,
        )
        assert row is not None
        await rows.put_text(tx, place, int(row[0] or 0), text)
    await rows.put_labels(tx, place, entry)


async def remove(tx: Transaction, place: Place, revisions: Sequence[str]) -> None:
    """Removes documents."""
    await rows.remove(tx, place, _ROWS, revisions)


async def revisions(tx: Transaction, place: Place) -> list[str]:
    """Returns what is there."""
    return await rows.revisions(tx, place, _ROWS)


async def search(tx: Transaction, place: Place, question: Question) -> list[Hit]:
    """Returns the chunks with any of the question's words, by BM25."""
    found = await rows.by_words(tx, place, _ROWS, question)
    named = await tx.fetch(
        "SELECT id, revision, ordinal FROM keyword_chunks WHERE id IN (SELECT value FROM json_each($1))",
        json.dumps(list(found)),
    )
    chunks = {int(row[0] or 0): (str(row[1]), int(row[2] or 0)) for row in named}
    return [Hit(*chunks[rowid], score) for rowid, score in found.items()]
