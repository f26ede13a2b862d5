"""What the kinds of bank in the SQLite file share: the labels of documents, and a full text table for each bank."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from turnwire.memory.banks.words import TOKENIZER, coverage, expression, scores, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.memory.banks.port import Entry, Place, Question
    from turnwire.runtime.storage import Transaction

TABLES = (
    # Ranking weighs words by a whole table, so that each bank has one of its own: `text_<id>`.
    "CREATE TABLE text_tables (id INTEGER PRIMARY KEY, bank TEXT NOT NULL UNIQUE)",
    "CREATE TABLE labels (bank TEXT NOT NULL, revision TEXT NOT NULL, label TEXT NOT NULL,"
    " PRIMARY KEY (bank, revision, label)) WITHOUT ROWID",
)


async def put_labels(tx: Transaction, place: Place, entry: Entry) -> None:
    """Keeps the labels of an entry."""
    for label in entry.labels:
        await tx.execute(
            "INSERT INTO labels (bank, revision, label) VALUES ($1, $2, $3)", place.uid, entry.revision, label
        )


async def put_text(tx: Transaction, place: Place, rowid: int, text: str) -> None:
    """Lets a row of the bank be found by the words of a text."""
    table = await _table(tx, place)
    if table is None:
        await tx.execute("INSERT INTO text_tables (bank) VALUES ($1)", place.uid)
        table = await _table(tx, place)
        await tx.execute(f"CREATE VIRTUAL TABLE {table} USING fts5(text, tokenize = '{TOKENIZER}')")
    await tx.execute(f"INSERT INTO {table} (rowid, text) VALUES ($1, $2)", rowid, text)  # noqa: S608 - our own name


async def remove(tx: Transaction, place: Place, rows: str, revisions: Sequence[str]) -> None:
    """Removes entries out of the table `rows`, with their words and labels; an empty bank leaves nothing behind."""
    table = await _table(tx, place)
    named = json.dumps(list(revisions))
    among = "bank = $1 AND revision IN (SELECT value FROM json_each($2))"
    if table is not None:
        ids = f"SELECT id FROM {rows} WHERE {among}"  # noqa: S608 - names of our own
        await tx.execute(f"DELETE FROM {table} WHERE rowid IN ({ids})", place.uid, named)  # noqa: S608 - as above
    await tx.execute(f"DELETE FROM {rows} WHERE {among}", place.uid, named)  # noqa: S608 - as above
    await tx.execute(f"DELETE FROM labels WHERE {among}", place.uid, named)  # noqa: S608 - as above
    left = await tx.fetchrow(f"SELECT 1 FROM {rows} WHERE bank = $1", place.uid)  # noqa: S608 - as above
    if table is not None and left is None:
        await tx.execute(f"DROP TABLE {table}")
        await tx.execute("DELETE FROM text_tables WHERE bank = $1", place.uid)


async def revisions(tx: Transaction, place: Place, rows: str) -> list[str]:
    """Returns the entries of a bank in the table `rows`."""
    found = await tx.fetch(
        f"SELECT DISTINCT revision FROM {rows} WHERE bank = $1",  # noqa: S608 - names of our own
        place.uid,
    )
    return [str(row[0]) for row in found]


def seen(rows: str) -> str:
    """Returns the condition for rows that a question may see; $1 is the bank, $2 and $3 what `limits` returns."""
    return f"""
        {rows}.bank = $1 AND {rows}.revision NOT IN (SELECT value FROM json_each($2))
        AND NOT EXISTS (
            SELECT 1 FROM json_each($3) AS wanted WHERE NOT EXISTS (
                SELECT 1 FROM labels WHERE labels.bank = {rows}.bank AND labels.revision = {rows}.revision
                    AND labels.label = wanted.value
            )
        )
    """  # noqa: S608 - names of our own


def limits(place: Place, question: Question) -> tuple[str, str, str]:
    """Returns the arguments $1 to $3 of a statement with the condition `seen`."""
    return place.uid, json.dumps(question.hidden), json.dumps(question.labels)


async def by_words(tx: Transaction, place: Place, rows: str, question: Question) -> dict[int, float]:
    """Returns the ids of the rows with any of the question's words, best first, with scores from 0 to 1."""
    table = await _table(tx, place)
    found = words(question.text)
    if table is None or not found:
        return {}
    ranked = await tx.fetch(
        f"""
        SELECT {rows}.id, {table}.rank FROM {table} JOIN {rows} ON {rows}.id = {table}.rowid
        WHERE {table} MATCH $4 AND {seen(rows)} ORDER BY {table}.rank, {rows}.id LIMIT $5
        """,  # noqa: S608 - names of our own
        *limits(place, question),
        expression(found),
        question.limit,
    )
    ids = [int(row[0] or 0) for row in ranked]
    share = await coverage(tx, table, ids[0], found) if ids else 0.0
    return dict(zip(ids, scores(ranked, share), strict=True))


async def _table(tx: Transaction, place: Place) -> str | None:
    row = await tx.fetchrow("SELECT id FROM text_tables WHERE bank = $1", place.uid)
    return f"text_{row[0]}" if row is not None else None
