"""Schemas in PostgreSQL: which version is there, and how it is brought up to date, once for all replicas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import asyncpg

from turnwire.errors import SchemaUnsupported

if TYPE_CHECKING:
    from turnwire.runtime.storage.port import Migration, Schema
    from turnwire.runtime.storage.postgres.server import PostgresServer

_TABLE = re.compile(r"\s*(CREATE|ALTER)\s+TABLE\b", re.IGNORECASE)
# Texts are compared by their bytes, whatever language the database speaks, and integers have 64 bits, as in SQLite.
_TYPES = {"TEXT": 'TEXT COLLATE "C"', "INTEGER": "BIGINT"}
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b")
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
# Rows are asked for, not names: what a connection knows of names may be older than the lock it has just been given.
_SCHEMA_IS_THERE = "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = $1"
_TABLE_IS_THERE = """
    SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'schema_version'
"""


async def migrate(server: PostgresServer, schema: Schema) -> list[int]:
    """Brings the schema up to date; returns the versions that this call has applied.

    Each version is a transaction of its own. Of replicas that start at once one applies it, and the others wait.

    Raises:
        StoreUnavailable: the database cannot be used.
        SchemaUnsupported: a newer version has written it.
    """
    connection = await server.connect(patient=True)
    applied: list[int] = []
    try:
        while (present := await _version(connection, server)) < schema.version:
            applied += await _apply_next(connection, server, schema)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise server.unavailable(error) from error
    finally:
        connection.terminate()
    if present > schema.version:
        raise SchemaUnsupported(schema.name, schema_version=present, supported=schema.version, where=server.where)
    return applied


async def present_version(server: PostgresServer) -> int:
    """Returns the version of the schema in the database; 0 when there is none yet.

    Raises:
        StoreUnavailable: the database cannot be used.
    """
    connection = await server.connect()
    try:
        return await _version(connection, server)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise server.unavailable(error) from error
    finally:
        connection.terminate()


async def _version(connection: Any, server: PostgresServer) -> int:
    if not await connection.fetchval(_TABLE_IS_THERE, server.schema):
        return 0
    version: int | None = await connection.fetchval(f'SELECT max(version) FROM "{server.schema}".schema_version')  # noqa: S608 - our own name
    return version or 0


async def _apply_next(connection: Any, server: PostgresServer, schema: Schema) -> list[int]:
    async with connection.transaction():
        await connection.execute(_LOCK, server.schema)
        present = await _version(connection, server)
        wanted = next((migration for migration in schema.migrations if migration.version > present), None)
        if wanted is None:
            return []  # another replica was quicker
        if present == 0:
            await _prepare(connection, server)
        await _apply(connection, wanted)
        return [wanted.version]


async def _prepare(connection: Any, server: PostgresServer) -> None:
    # Asked first: who may not create schemas may well have been given this one.
    if not await connection.fetchval(_SCHEMA_IS_THERE, server.schema):
        await connection.execute(f'CREATE SCHEMA "{server.schema}"')
    await connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")


async def _apply(connection: Any, migration: Migration) -> None:
    for statement in migration.statements:
        is_table = _TABLE.match(statement) is not None
        await connection.execute(_TYPE.sub(lambda found: _TYPES[found[0]], statement) if is_table else statement)
    await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", migration.version)
