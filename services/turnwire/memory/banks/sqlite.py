"""`inline::sqlite`: banks of values, words and graphs in one SQLite file.

The words are ranked by the BM25 of SQLite's own full text index (FTS5), stemmed for English; other languages are found
by their words as they stand. Statements run in the store's threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import ProviderUnavailable
from turnwire.memory.banks import graph, keyvalue, keyword, rows
from turnwire.runtime.storage import Migration, Schema, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from turnwire.memory.banks.port import Entry, Hit, Kind, Place, Question, State
    from turnwire.runtime.storage import Transaction


class _Index(Protocol):
    """One kind of bank, in the file: a module of this folder."""

    @property
    def TABLES(self) -> tuple[str, ...]: ...

    async def put(self, tx: Transaction, place: Place, entry: Entry) -> None: ...

    async def remove(self, tx: Transaction, place: Place, revisions: Sequence[str]) -> None: ...

    async def revisions(self, tx: Transaction, place: Place) -> list[str]: ...

    async def search(self, tx: Transaction, place: Place, question: Question) -> list[Hit]: ...


_INDEXES: dict[Kind, _Index] = {"keyvalue": keyvalue, "keyword": keyword, "graph": graph}


class SqliteProvider:
    """Keeps banks in a file of its own."""

    kinds: frozenset[Kind] = frozenset(_INDEXES)

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

    def __init__(self, provider_id: str, config: Config) -> None:
        """Opens nothing yet."""
        self.provider_id = provider_id
        self._store: SqliteStore | None = None

    async def start(self, data_dir: Path) -> None:
        """Opens the file."""
        tables = rows.TABLES + tuple(table for index in _INDEXES.values() for table in index.TABLES)
        schema = Schema(name=f"memory-{self.provider_id}", migrations=(Migration(version=1, statements=tables),))
        self._store = await SqliteStore.open(data_dir / f"{schema.name}.sqlite3", schema)

    async def close(self) -> None:
        """Closes the file."""
        if self._store is not None:
            await self._store.close()
            self._store = None

    def state(self) -> tuple[State.ValueType, str]:
        """Ready from its start on."""
        if self._store is None:
            return inspect_service_pb2.Provider.STATE_UNAVAILABLE, "its file is not open"
        return inspect_service_pb2.Provider.STATE_READY, ""

    async def create(self, place: Place) -> None:
        """Nothing is to be made: the tables are those of all banks."""

    async def drop(self, place: Place) -> None:
        """Removes all entries of a bank."""
        index = _INDEXES[place.kind]

        async def unit(tx: Transaction) -> None:
            await index.remove(tx, place, await index.revisions(tx, place))

        await self._opened().write(unit)

    async def put(self, place: Place, entry: Entry) -> None:
        """Adds an entry, in one transaction."""

        async def unit(tx: Transaction) -> None:
            await _INDEXES[place.kind].put(tx, place, entry)

        await self._opened().write(unit)

    async def remove(self, place: Place, revisions: Sequence[str]) -> None:
        """Removes entries, in one transaction."""

        async def unit(tx: Transaction) -> None:
            await _INDEXES[place.kind].remove(tx, place, revisions)

        await self._opened().write(unit)

    async def search(self, place: Place, question: Question) -> list[Hit]:
        """Returns what fits, best first."""

        async def unit(tx: Transaction) -> list[Hit]:
            return await _INDEXES[place.kind].search(tx, place, question)

        return await self._opened().read(unit)

    def _opened(self) -> SqliteStore:
        if self._store is None:
            raise ProviderUnavailable(self.provider_id, "its file is not open")
        return self._store
