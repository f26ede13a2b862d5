"""A store in one SQLite file: one writer that commits in groups, readers beside it.

The writer is a thread. It takes whatever is queued, runs each unit in a savepoint, and commits them together with one
fsync (`synchronous=FULL`): what `write` has returned survives a loss of power. A service on SQLite is one process; an
operating-system lock beside the file refuses a second one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from turnwire.errors import SchemaUnsupported, StoreUnavailable
from turnwire.runtime.storage.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from turnwire.runtime.storage.port import Heard, Row, Schema, SqlValue, Unit

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_READERS = 2
_GROUP = 512
"""At most so many units share a commit."""


class SqliteTransaction:
    """Runs statements at once: its methods never suspend, so a unit is driven to its end in one go."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Works on an open transaction of `connection`."""
        self._connection = connection
        self.notices: list[tuple[str, str]] = []
        """What is told once the transaction is committed."""
        self.failure: sqlite3.Error | None = None
        """The first error of a statement: it fails the unit, whatever that makes of it, as on PostgreSQL."""

    async def execute(self, sql: str, *args: SqlValue) -> int:
        """Runs a statement; returns the number of rows it changed."""
        return self._run(sql, args).rowcount

    async def execute_many(self, sql: str, rows: Sequence[Row]) -> None:
        """Runs a statement for each row of values."""
        for row in rows:
            self._run(sql, row)

    async def fetch(self, sql: str, *args: SqlValue) -> list[Row]:
        """Returns the rows of a query."""
        return self._run(sql, args).fetchall()

    async def fetchrow(self, sql: str, *args: SqlValue) -> Row | None:
        """Returns the first row of a query, or None."""
        row: Row | None = self._run(sql, args).fetchone()
        return row

    async def now(self) -> int:
        """Returns the machine's time in microseconds: the database is in this process."""
        return _now()

    async def notify(self, topic: str, text: str) -> None:
        """Tells whoever listens to a topic, once the unit is committed."""
        self.notices.append((topic, text))

    def _run(self, sql: str, args: Sequence[SqlValue]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, _bound(args))
        except sqlite3.Error as error:
            self.failure = self.failure or error
            raise


def _now() -> int:
    return time.time_ns() // 1_000


@lru_cache(maxsize=64)
def _names(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, count + 1))


def _bound(args: Sequence[SqlValue]) -> dict[str, SqlValue]:
    # SQLite takes `$1` for a parameter of the name 1.
    return dict(zip(_names(len(args)), args, strict=True))


def _drive(work: Coroutine[Any, Any, T]) -> T:
    try:
        work.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    work.close()
    raise RuntimeError("a unit of work awaited something other than its transaction")


def _is_of_the_database(error: Exception) -> bool:
    """True for a full disk or a broken file; false for what one statement did wrong, as a constraint."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


class SqliteStore:
    """The store of one service in one file."""

    def __init__(self, path: Path, schema: Schema) -> None:
        """`open` opens it."""
        self.path = path
        self.commits = 0
        """Transactions committed so far."""
        self._schema = schema
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix=f"{schema.name} reader")
        self._reader_connections: list[sqlite3.Connection] = []
        self._listeners = Listeners()
        self._writer: threading.Thread | None = None
        self._lock: int | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path, schema: Schema) -> SqliteStore:
        """Opens the store, after its schema was brought up to date.

        Raises:
            StoreUnavailable: another process has it open, or the file cannot be used.
            SchemaUnsupported: a newer version has written it.
        """
        store = cls(path, schema)
        connection = await asyncio.get_running_loop().run_in_executor(store._readers, store._prepare)
        store._writer = threading.Thread(
            target=store._write_all, args=(connection,), name=f"{schema.name} writer", daemon=True
        )
        store._writer.start()
        return store

    async def write(self, unit: Unit[T]) -> T:
        """Runs a unit together with others in one transaction; returns after its commit."""
        if self._closed:
            raise StoreUnavailable(self._schema.name, f"{self.path} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Job(unit, future, loop))
        return await future

    async def read(self, unit: Unit[T]) -> T:
        """Runs a unit that only reads, on one state of the database."""
        if self._closed:
            raise StoreUnavailable(self._schema.name, f"{self.path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, unit)

    async def now(self) -> int:
        """Returns the machine's time in microseconds: the database is in this process."""
        return _now()

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """Calls `heard` with each text that a unit sends to a topic, after its commit."""
        return self._listeners.add(topic, heard)

    async def close(self) -> None:
        """Commits what is queued and closes the database."""
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._shut)

    def _prepare(self) -> sqlite3.Connection:
        """Returns the writer's connection, the schema brought up to date."""
        connection: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            connection = self._connect()
            connection.execute("PRAGMA journal_mode = WAL")
            self._migrate(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            self._give_lock()
            if isinstance(error, sqlite3.Error | OSError):
                raise self._unavailable(error) from error
            raise
        return connection

    def _take_lock(self) -> None:
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StoreUnavailable(
                self._schema.name,
                f"the process {holder or 'unknown'} has {self.path} open, and on SQLite a service is one process",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def _give_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=5.0
        )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
        present: int = row[0] or 0
        if present > self._schema.version:
            raise SchemaUnsupported(
                self._schema.name, schema_version=present, supported=self._schema.version, where=str(self.path)
            )
        for migration in self._schema.migrations:
            if migration.version <= present:
                continue
            connection.execute("BEGIN IMMEDIATE")
            for statement in migration.statements:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version (version) VALUES (?)", (migration.version,))
            connection.execute("COMMIT")

    def _read(self, unit: Unit[T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
                self._reader_connections.append(connection)
            connection.execute("BEGIN")
            try:
                return _drive(unit(SqliteTransaction(connection)))  # pyright: ignore[reportArgumentType] - a coroutine
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            if _is_of_the_database(error):
                raise self._unavailable(error) from error
            raise

    def _write_all(self, connection: sqlite3.Connection) -> None:
        open_for_work = True
        while open_for_work:
            jobs, open_for_work = self._take()
            if jobs:
                self._commit_group(connection, jobs)
        connection.close()

    def _take(self) -> tuple[list[_Job], bool]:
        jobs: list[_Job] = []
        job = self._queue.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= _GROUP:
                return jobs, True
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _commit_group(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        outcomes: list[tuple[_Job, Any, Exception | None]] = []
        notices: list[tuple[str, str]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                outcomes.append(self._run_unit(connection, job, notices))
            connection.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:
            _log.warning("store_commit_failed", service=self._schema.name, error=str(error))
            # A disk that failed may fail here too; the thread must live, and the callers must hear of it.
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            failure = self._unavailable(error)
            outcomes = [(job, None, failure) for job in jobs]
            notices = []
        for job, result, error in outcomes:
            job.deliver(result, error)
        for topic, text in notices:
            jobs[0].call(self._listeners.tell, topic, text)

    def _run_unit(
        self, connection: sqlite3.Connection, job: _Job, notices: list[tuple[str, str]]
    ) -> tuple[_Job, Any, Exception | None]:
        connection.execute("SAVEPOINT unit")
        transaction = SqliteTransaction(connection)
        try:
            result = _drive(job.unit(transaction))
            if transaction.failure is not None:
                raise transaction.failure
        except Exception as error:
            if _is_of_the_database(error):
                # The disk is full or the file is broken: that concerns the whole group.
                raise
            connection.execute("ROLLBACK TO unit")
            connection.execute("RELEASE unit")
            return job, None, error
        connection.execute("RELEASE unit")
        notices += transaction.notices
        return job, result, None

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(self._schema.name, f"{self.path}: {error}")

    def _shut(self) -> None:
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        self._readers.shutdown()
        for connection in self._reader_connections:
            connection.close()
        self._reader_connections.clear()
        self._give_lock()


class _Job:
    """A unit that is queued, and who waits for it."""

    __slots__ = ("_future", "_loop", "unit")

    def __init__(self, unit: Any, future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.unit = unit
        self._future = future
        self._loop = loop

    def deliver(self, result: Any, error: Exception | None) -> None:
        self.call(self._settle, result, error)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Calls a function on the loop of the caller."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            _log.debug("store_result_unwanted")  # the loop ended while the commit was on its way

    def _settle(self, result: Any, error: Exception | None) -> None:
        if self._future.done():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)
