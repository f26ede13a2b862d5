"""Banks of the kind keyvalue: JSON values, found by their keys and by words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from turnwire.errors import DocumentRefused
from turnwire.memory.banks import rows
from turnwire.memory.banks.port import Hit
from turnwire.memory.banks.words import phrases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.memory.banks.port import Entry, Place, Question
    from turnwire.runtime.storage import Transaction

_ROWS = "keyvalue_values"
TABLES = (
    f"""
    CREATE TABLE {_ROWS} (
        id INTEGER PRIMARY KEY,
        bank TEXT NOT NULL,
        revision TEXT NOT NULL,
        document_id TEXT NOT NULL,
        key TEXT NOT NULL COLLATE NOCASE,
        UNIQUE (bank, revision)
    )
    """,
    f"CREATE INDEX keyvalue_by_key ON {_ROWS} (bank, key)",
)
_EXACT, _PREFIX, _MENTIONED, _BY_WORDS = 1.0, 0.95, 0.9, 0.8


async def put(tx: Transaction, place: Place, entry: Entry) -> None:
    """Adds a value.

    Raises:
        DocumentRefused: another document of the bank has the key.
    """
    assert entry.key_value is not None
    key = entry.key_value.key
    holder = await tx.fetchrow(
        f"SELECT document_id FROM {_ROWS} WHERE bank = $1 AND key = $2 AND key = $2 COLLATE BINARY"  # noqa: S608 - our own name
        " AND document_id <> $3 AND revision NOT IN (SELECT value FROM json_each($4))",
        place.uid,
        key,
        entry.document_id,
        json.dumps(entry.hidden),
    )
    if holder is not None:
        raise DocumentRefused(entry.document_id, f"the key {key!r} is that of the document {holder[0]!r}")
    row = await tx.fetchrow(
        f"INSERT INTO {_ROWS} (bank, revision, document_id, key) VALUES ($1, $2, $3, $4) RETURNING id",  # noqa: S608 - as above
        place.uid,
        entry.revision,
        entry.document_id,
        key,
    )
    assert row is not None
    await rows.put_text(tx, place, int(row[0] or 0), f"{key} {entry.key_value.value_json}")
    await rows.put_labels(tx, place, entry)


async def remove(tx: Transaction, place: Place, revisions: Sequence[str]) -> None:
    """Removes values."""
    await rows.remove(tx, place, _ROWS, revisions)


async def revisions(tx: Transaction, place: Place) -> list[str]:
    """Returns what is there."""
    return await rows.revisions(tx, place, _ROWS)


async def search(tx: Transaction, place: Place, question: Question) -> list[Hit]:
    """Returns values: that of the very key, of a prefix (`name*`), of keys in the question, then by words."""
    found: dict[str, float] = {}
    asked = question.text.strip()
    condition, arguments = rows.seen(_ROWS), rows.limits(place, question)
    if asked.endswith("*") and len(asked) > 1:
        prefix = asked[:-1]
        named = await tx.fetch(
            f"SELECT revision, key FROM {_ROWS} WHERE {condition}"  # noqa: S608 - names of our own
            " AND key >= $4 AND substr(key, 1, length($4)) = $4 ORDER BY key LIMIT $5",
            *arguments,
            prefix,
            question.limit,
        )
        found |= {str(row[0]): _PREFIX for row in named}
    else:
        named = await tx.fetch(
            f"SELECT revision, key FROM {_ROWS} WHERE {condition}"  # noqa: S608 - names of our own
            " AND key IN (SELECT value FROM json_each($4)) ORDER BY length(key) DESC, key LIMIT $5",
            *arguments,
            json.dumps(phrases(question.text)),
            question.limit,
        )
        found |= {str(row[0]): _EXACT if row[1] == asked else _MENTIONED for row in named}
        by_words = await rows.by_words(tx, place, _ROWS, question)
        ids = await tx.fetch(
            f"SELECT id, revision FROM {_ROWS} WHERE id IN (SELECT value FROM json_each($1))",  # noqa: S608 - our own
            json.dumps(list(by_words)),
        )
        names = {int(row[0] or 0): str(row[1]) for row in ids}
        for rowid, score in by_words.items():
            found.setdefault(names[rowid], _BY_WORDS * score)
    ranked = sorted(found.items(), key=lambda item: -item[1])
    return [Hit(revision, 0, score) for revision, score in ranked[: question.limit]]
