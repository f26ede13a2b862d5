"""What the store of the agent has committed and kept, on SQLite and on PostgreSQL, read from outside."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.processes import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from turnwire.testing.postgres import Postgres

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIII")
_FRAME_BYTES = 24


@dataclass(slots=True)
class Stored:
    """What has come to a database between two moments."""

    commits: int = 0
    written_bytes: int = 0
    """What went into the write-ahead log, a page for each changed page of a commit."""
    grown_bytes: int = 0
    """What the database has grown by."""
    agent_cpu_seconds: float = 0.0
    database_cpu_seconds: float = 0.0
    """Of the processes of the server; SQLite works within the agent."""


@contextmanager
def counted(database: Path) -> Generator[Stored]:
    """Gives figures that are there when the context has been left.

    Commits are counted in the write-ahead log: the last frame of each names the size of the database. An open reader
    keeps the log from being begun anew meanwhile; so nothing is timed within this context.
    """
    stored = Stored()
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
        reader.isolation_level = None
        pages = _pages(reader)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM schema_version").fetchone()
        before = _Log.read(database)
        yield stored
        after = _Log.read(database)
        reader.execute("ROLLBACK")
        # Where all of it was in the database already, the first commit began the log anew: none before counts.
        seen = before if before.salts == after.salts else _Log(after.salts, 0, 0, after.page_bytes)
        stored.commits = after.commits - seen.commits
        stored.written_bytes = (after.frames - seen.frames) * (_FRAME_BYTES + after.page_bytes)
        stored.grown_bytes = (_pages(reader) - pages) * after.page_bytes


@contextmanager
def counted_in_postgres(server: Postgres, database: str) -> Generator[Stored]:
    """Gives figures that are there when the context has been left; the server does nothing else meanwhile."""
    stored = Stored()
    begin, size, used = _place(server), _size(server, database), _cpu(server)
    yield stored
    stored.database_cpu_seconds = _cpu(server) - used
    end = _place(server)
    stored.commits = server.committed(begin, end)
    stored.written_bytes = int(server.psql(f"SELECT pg_wal_lsn_diff('{end}', '{begin}')"))
    stored.grown_bytes = _size(server, database) - size


def _place(server: Postgres) -> str:
    return server.psql("SELECT pg_current_wal_flush_lsn()")


def _size(server: Postgres, database: str) -> int:
    # The tables and indexes of the service: the catalogue of the database is no part of a turn.
    own = "relkind = 'r' AND relnamespace = 'turnwire_agent'::regnamespace"
    sql = f"SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE {own}"
    return int(server.psql(sql, database))


def _cpu(server: Postgres) -> float:
    used = 0.0
    for pid in server.pids():
        with suppress(ProcessLookupError, OSError):  # the one that has just answered is ending
            used += cpu_seconds(pid)
    return used


def _pages(reader: sqlite3.Connection) -> int:
    used: int = reader.execute("PRAGMA page_count").fetchone()[0]
    free: int = reader.execute("PRAGMA freelist_count").fetchone()[0]
    return used - free


@dataclass(frozen=True, slots=True)
class _Log:
    """The frames of a write-ahead log, as https://www.sqlite.org/fileformat2.html#walformat has them."""

    salts: tuple[int, int]
    frames: int
    commits: int
    page_bytes: int

    @classmethod
    def read(cls, database: Path) -> _Log:
        content = database.with_name(f"{database.name}-wal").read_bytes()
        if len(content) < _HEADER.size:
            return cls((0, 0), 0, 0, 0)
        header = _HEADER.unpack_from(content)
        page_bytes, salts = header[2], (header[4], header[5])
        frames = commits = 0
        for place in range(_HEADER.size, len(content) - _FRAME_BYTES - page_bytes + 1, _FRAME_BYTES + page_bytes):
            _, size, first_salt, second_salt = _FRAME.unpack_from(content, place)
            if (first_salt, second_salt) != salts:
                break  # left over from before the log was begun anew
            frames += 1
            commits += size > 0
        return cls(salts, frames, commits, page_bytes)
