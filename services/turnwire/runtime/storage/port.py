"""What a service asks of its store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

SqlValue = str | int | float | bytes | None
Row = Sequence[SqlValue]
T = TypeVar("T")


class Transaction(Protocol):
    """Runs statements, the same on SQLite and on PostgreSQL. Placeholders are `$1` to `$n`.

    Texts are compared and ordered by their bytes. Whatever a unit makes of it, a statement that failed fails its unit.
    """

    async def execute(self, sql: str, *args: SqlValue) -> int:
        """Runs a statement; returns the number of rows it changed."""
        ...

    async def execute_many(self, sql: str, rows: Sequence[Row]) -> None:
        """Runs a statement for each row of values, in no order that can be told: one message to a distant database."""
        ...

    async def fetch(self, sql: str, *args: SqlValue) -> list[Row]:
        """Returns the rows of a query."""
        ...

    async def fetchrow(self, sql: str, *args: SqlValue) -> Row | None:
        """Returns the first row of a query, or None."""
        ...

    async def now(self) -> int:
        """Returns the time by the clock of the database, in microseconds since 1970: the one that replicas share."""
        ...

    async def notify(self, topic: str, text: str) -> None:
        """Tells whoever listens to a topic, once the unit is committed. A hint: it may be lost.

        The text is short, as an id is: PostgreSQL takes 8000 bytes.
        """
        ...


Unit = Callable[[Transaction], Awaitable[T]]
"""A unit of work: a coroutine function that awaits nothing but its transaction.

It changes nothing but the database, and returns what is to be known outside: on PostgreSQL it is run again when a
replica's transaction has come in between.
"""


Heard = Callable[[str], None]
"""What is called with the text of a notice."""


class Store(Protocol):
    """Runs units of work."""

    async def write(self, unit: Unit[T]) -> T:
        """Runs a unit together with others in one transaction; returns after its commit.

        Units of all replicas are as good as run one after the other: what one has read holds until it is committed.
        A unit that raises is rolled back alone, and its error is raised here. The unit of a cancelled caller is
        committed all the same.

        Raises:
            StoreUnavailable: the database cannot be used now; nothing of the unit is stored.
        """
        ...

    async def read(self, unit: Unit[T]) -> T:
        """Runs a unit that only reads, on one state of the database."""
        ...

    async def now(self) -> int:
        """Returns the time by the clock of the database, in microseconds since 1970: the one that replicas share."""
        ...

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """Calls `heard` on the loop with each text that a unit of any replica sends to a topic; returns what ends it.

        These are hints: one may be lost, as when the database was away. Whoever needs to know looks again from time
        to time.
        """
        ...

    async def close(self) -> None:
        """Commits what is queued and closes the database."""
        ...


@dataclass(frozen=True, slots=True)
class Migration:
    """The statements that lead to a version of a schema."""

    version: int
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of a service: its migrations, in order from version 1."""

    name: str
    migrations: tuple[Migration, ...]

    @property
    def version(self) -> int:
        """The version that this code works on."""
        return self.migrations[-1].version
