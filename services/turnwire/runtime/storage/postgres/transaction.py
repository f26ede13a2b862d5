"""Statements on a connection, and units of work that await nothing else."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Sequence

    from turnwire.runtime.storage.port import Row, SqlValue

T = TypeVar("T")
_PLACEHOLDER = re.compile(r"\$(\d+)")
# bool is an int here, as it is in SQLite.
_TYPES: dict[type, str] = {str: "text", int: "bigint", bool: "bigint", float: "float8", bytes: "bytea"}
# PostgreSQL has no text with U+0000, which callers may well send as an id: two characters stand for it.
_ESCAPE = "\U0010ffff"
_ESCAPED = {"\0": f"{_ESCAPE}0", _ESCAPE: f"{_ESCAPE}1"}
_ODD = re.compile("|".join(_ESCAPED))
_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class PostgresTransaction:
    """Runs statements on an open transaction."""

    def __init__(self, connection: Any, channel: str) -> None:
        """Works on an open transaction of `connection`; `channel` is where notices go."""
        self._connection = connection
        self._channel = channel
        self.waits = False
        """True while a statement runs: the only time at which a unit may wait."""
        self.failure: BaseException | None = None
        """The first error of a statement: after it the transaction is no good, whatever the unit makes of it."""

    async def execute(self, sql: str, *args: SqlValue) -> int:
        """Runs a statement; returns the number of rows it changed."""
        status: str = await self._waiting(self._connection.execute(_typed(sql, args), *_sent(args)))
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def execute_many(self, sql: str, rows: Sequence[Row]) -> None:
        """Runs a statement for each row of values: sent together, answered together."""
        by_types: dict[str, list[Row]] = {}
        for row in rows:
            by_types.setdefault(_typed(sql, tuple(row)), []).append(_sent(row))
        for statement, alike in by_types.items():
            await self._waiting(self._connection.executemany(statement, alike))

    async def fetch(self, sql: str, *args: SqlValue) -> list[Row]:
        """Returns the rows of a query."""
        rows = await self._waiting(self._connection.fetch(_typed(sql, args), *_sent(args)))
        return [_came(row) for row in rows]

    async def fetchrow(self, sql: str, *args: SqlValue) -> Row | None:
        """Returns the first row of a query, or None."""
        row = await self._waiting(self._connection.fetchrow(_typed(sql, args), *_sent(args)))
        return _came(row) if row is not None else None

    async def now(self) -> int:
        """Returns the time by the server's clock, in microseconds."""
        now: int = await self._waiting(self._connection.fetchval(_NOW))
        return now

    async def notify(self, topic: str, text: str) -> None:
        """Tells whoever listens to a topic, in any replica, once the unit is committed."""
        await self._waiting(self._connection.execute("SELECT pg_notify($1, $2)", self._channel, f"{topic}\n{text}"))

    async def _waiting(self, statement: Awaitable[Any]) -> Any:
        self.waits = True
        try:
            return await statement
        except BaseException as error:
            self.failure = self.failure or error
            raise
        finally:
            self.waits = False


def _sent(args: Row) -> Row:
    """Returns values as PostgreSQL can have them."""
    if not any(isinstance(arg, str) and _ODD.search(arg) for arg in args):
        return args
    return [_ODD.sub(lambda odd: _ESCAPED[odd[0]], arg) if isinstance(arg, str) else arg for arg in args]


def _came(row: Any) -> Row:
    """Returns the values of a row as they were sent."""
    values: tuple[SqlValue, ...] = tuple(row)
    if not any(isinstance(value, str) and _ESCAPE in value for value in values):
        return values
    return tuple(
        value.replace(_ESCAPED["\0"], "\0").replace(_ESCAPED[_ESCAPE], _ESCAPE) if isinstance(value, str) else value
        for value in values
    )


def _typed(sql: str, args: tuple[SqlValue, ...]) -> str:
    return _with_types(sql, tuple(type(arg) for arg in args)) if args else sql


@lru_cache(maxsize=2048)
def _with_types(sql: str, types: tuple[type, ...]) -> str:
    """Returns a statement whose placeholders have the types of their values.

    PostgreSQL would guess them out of what stands beside: `$3 = 0` makes of $3 an integer of 32 bits.
    """

    def typed(match: re.Match[str]) -> str:
        name = _TYPES.get(types[int(match[1]) - 1])
        return f"{match[0]}::{name}" if name is not None else match[0]

    return _PLACEHOLDER.sub(typed, sql)


@coroutine
def driven(work: Any, transaction: PostgresTransaction) -> Generator[Any, Any, Any]:
    """Returns what a unit returns.

    Raises:
        RuntimeError: it awaited something other than its transaction, while others wait for their commit.
    """
    resume: Any = partial(work.send, None)
    while True:
        try:
            awaited = resume()
        except StopIteration as finished:
            return finished.value
        if not transaction.waits:
            work.close()
            raise RuntimeError("a unit of work awaited something other than its transaction")
        try:
            yield awaited
        except BaseException as error:
            resume = partial(work.throw, error)
        else:
            resume = partial(work.send, None)
