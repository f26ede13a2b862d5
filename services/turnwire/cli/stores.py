"""What the services of the settings keep, and in which version: on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from turnwire.errors import StoreUnavailable
from turnwire.runtime.extras import imported

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from turnwire.runtime.settings import Settings
    from turnwire.runtime.storage import Schema

SCHEMAS = {
    "agent": "turnwire.agent.store.schema",
    "inference": "turnwire.inference.store.schema",
    "safety": "turnwire.safety.store.schema",
    "memory": "turnwire.memory.store.schema",
    "tool_executor": "turnwire.tool_executor.store.schema",
}
"""The services that keep something, and where their schemas are."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The store of one service."""

    service: str
    where: str
    present: int
    """The version of its schema that is there; 0 when there is none yet."""
    known: int
    """The version that this Turnwire works on."""

    @property
    def state(self) -> str:
        """In one word."""
        if self.present > self.known:
            return "too new"
        if self.present == self.known:
            return "ready"
        return "to be migrated" if self.present else "not there yet"


def schema_of(service: str) -> Schema:
    """Returns the schema of a service."""
    module: Any = import_module(SCHEMAS[service])
    schema: Schema = module.SCHEMA
    return schema


async def look(settings: Settings, services: Sequence[str] = tuple(SCHEMAS)) -> list[Kept]:
    """Returns what is there of each service; nothing is changed.

    Raises:
        StoreUnavailable: it cannot be read.
        ExtraMissing: it is PostgreSQL, and the package for that is not installed.
    """
    if settings.store.url == "sqlite":
        return [_in_file(service, settings.data_dir / f"{service}.sqlite3") for service in services]
    postgres = _postgres()
    found: list[Kept] = []
    for service in services:
        schema = schema_of(service)
        server = postgres.PostgresServer(settings.store.url, schema.name)
        found.append(Kept(service, server.where, await postgres.present_version(server), schema.version))
    return found


async def migrate(settings: Settings, service: str) -> None:
    """Brings the store of a service up to date.

    Raises:
        StoreUnavailable: it cannot be used; on SQLite also while the service runs.
        SchemaUnsupported: a newer version has written it.
        ExtraMissing: it is PostgreSQL, and the package for that is not installed.
    """
    schema = schema_of(service)
    if settings.store.url == "sqlite":
        from turnwire.runtime.storage import SqliteStore

        store = await SqliteStore.open(settings.data_dir / f"{schema.name}.sqlite3", schema)
        await store.close()
    else:
        postgres = _postgres()
        await postgres.migrate(postgres.PostgresServer(settings.store.url, schema.name), schema)


def version_in(path: Path) -> int:
    """Returns the version of the schema in an SQLite file, which may be open elsewhere.

    Raises:
        sqlite3.DatabaseError: it cannot be read.
    """
    # Without its log beside it the file is whole, and nothing has to be written to read it.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=2.0)) as connection:
        row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(row[0] or 0)


def _in_file(service: str, path: Path) -> Kept:
    try:
        present = version_in(path) if path.exists() else 0
    except sqlite3.DatabaseError as error:
        raise StoreUnavailable(service, f"{path}: {error}") from error
    return Kept(service, str(path), present, schema_of(service).version)


def _postgres() -> Any:
    return imported("turnwire.runtime.storage.postgres", setting="store.url", extra="postgres")
