"""A schema of notes, and the units that tests of every store work with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.storage import Migration, Schema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from turnwire.runtime.storage import Store, Transaction

ONE = Migration(
    1,
    (
        "CREATE TABLE notes (number BIGINT PRIMARY KEY, text TEXT NOT NULL, body BYTEA, weight DOUBLE PRECISION)",
        "CREATE INDEX notes_by_text ON notes (text) WHERE text <> ''",
    ),
)
SCHEMA = Schema("notes", (ONE,))


def adding(number: int, text: str = "") -> Callable[[Transaction], Awaitable[int]]:
    """Returns a unit that adds a note."""

    async def unit(tx: Transaction) -> int:
        return await tx.execute("INSERT INTO notes (number, text) VALUES ($1, $2)", number, text)

    return unit


async def numbers(store: Store) -> list[int]:
    """Returns the numbers of all notes, in order."""

    async def unit(tx: Transaction) -> list[Any]:
        return [row[0] for row in await tx.fetch("SELECT number FROM notes ORDER BY number")]

    return await store.read(unit)
