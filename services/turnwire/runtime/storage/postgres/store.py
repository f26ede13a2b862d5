"""A store in PostgreSQL: a writer that commits in groups, readers beside it, replicas that do the same.

Units run one after the other as far as they can tell, in this process and in every replica: transactions are
SERIALIZABLE, and what conflicts is run again. The writer takes whatever waits and commits it together. There is one for
each process: units of two would conflict with each other, since new rows go to the same pages of an index, and were
slower together than one after the other, on a server near by and on one that is far.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from turnwire.errors import StoreUnavailable
from turnwire.runtime.storage.listeners import Listeners
from turnwire.runtime.storage.postgres.groups import Group, Job
from turnwire.runtime.storage.postgres.hearing import Hearing
from turnwire.runtime.storage.postgres.migrations import migrate
from turnwire.runtime.storage.postgres.server import PostgresServer, is_away
from turnwire.runtime.storage.postgres.transaction import PostgresTransaction, driven

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from turnwire.runtime.storage.port import Heard, Schema, Unit

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_GROUP = 60
"""At most so many units share a commit: beyond 64 savepoints PostgreSQL writes them to its disk."""
_PATIENCE_SECONDS = 2.0
"""So long a unit waits for a database that is away: a server that is started anew is back by then."""
_LONGEST_PAUSE = 0.5


class PostgresStore:
    """The store of one service in a schema of its own."""

    def __init__(self, server: PostgresServer, connections: int) -> None:
        """`open` opens it."""
        self.commits = 0
        """Transactions committed so far."""
        self.conflicts = 0
        """Transactions that were run again so far, because another one came in between."""
        self._server = server
        self._queue: deque[Job] = deque()
        self._queued = asyncio.Event()
        self._idle: list[Any] = []
        self._reading = asyncio.Semaphore(connections - 1)
        self._reads: set[asyncio.Task[Any]] = set()
        self._writer = asyncio.create_task(self._write_all(), name=f"{server.schema} writer")
        self._listeners = Listeners()
        self._hearing = Hearing(server, self._listeners)
        self._closed = False

    @classmethod
    async def open(cls, url: str, schema: Schema, *, connections: int = 4) -> PostgresStore:
        """Opens the store, after its schema was brought up to date.

        It keeps at most so many `connections`, of which one writes, and one more to listen.

        Raises:
            StoreUnavailable: the database cannot be used.
            SchemaUnsupported: a newer version has written it.
        """
        server = PostgresServer(url, schema.name)
        for version in await migrate(server, schema):
            _log.info("schema_migrated", service=schema.name, version=version)
        return cls(server, connections)

    async def write(self, unit: Unit[T]) -> T:
        """Runs a unit together with others in one transaction; returns after its commit."""
        self._check_open()
        job = Job(unit, asyncio.get_running_loop().create_future(), asyncio.get_running_loop().time())
        self._queue.append(job)
        self._queued.set()
        result: T = await job.future
        return result

    async def read(self, unit: Unit[T]) -> T:
        """Runs a unit that only reads, on one state of the database."""
        self._check_open()
        # A connection whose caller leaves in the middle of a statement would have to be thrown away.
        read = asyncio.create_task(self._read(unit), name=f"{self._server.schema} read")
        self._reads.add(read)
        read.add_done_callback(self._read_ended)
        return await asyncio.shield(read)

    async def now(self) -> int:
        """Returns the time by the server's clock, in microseconds."""
        return await self.read(lambda tx: tx.now())

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """Calls `heard` with each text that a unit of any replica sends to a topic."""
        self._hearing.begin()
        return self._listeners.add(topic, heard)

    async def close(self) -> None:
        """Commits what is queued and closes the connections."""
        self._closed = True
        self._queued.set()
        await self._writer
        await asyncio.gather(*self._reads, return_exceptions=True)
        await self._hearing.close()
        for connection in self._idle:
            await _close(connection)
        self._idle.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(self._server.service, f"{self._server.where}: the store is closed")

    async def _read(self, unit: Unit[T]) -> T:
        deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        pause = 0.02
        while True:
            try:
                async with self._reading, self._reader() as connection:
                    return await self._read_on(connection, unit)
            except Exception as error:
                if not is_away(error):
                    raise
                if self._closed or asyncio.get_running_loop().time() + pause > deadline:
                    raise self._unavailable(error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _read_on(self, connection: Any, unit: Unit[T]) -> T:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        transaction = PostgresTransaction(connection, self._server.schema)
        try:
            result: T = await driven(unit(transaction), transaction)
        except BaseException:
            await connection.execute("ROLLBACK")
            raise
        await connection.execute("COMMIT")
        return result

    @asynccontextmanager
    async def _reader(self) -> AsyncGenerator[Any]:
        connection = self._idle.pop() if self._idle else await self._server.connect()
        try:
            yield connection
        except BaseException as error:
            if is_away(error) or isinstance(error, asyncio.CancelledError):
                connection.terminate()
            raise
        finally:
            if not connection.is_closed():
                self._idle.append(connection)

    def _read_ended(self, read: asyncio.Task[Any]) -> None:
        self._reads.discard(read)
        if not read.cancelled():
            read.exception()  # its caller may be gone, and then nobody else asks

    async def _write_all(self) -> None:
        """Commits what waits, until the store is closed and nothing waits."""
        connection: Any = None
        while await self._is_queued():
            jobs = self._take()
            pause = 0.02
            while jobs:
                try:
                    # A server that restarts has closed it, and a fresh one is had at once.
                    if connection is None or connection.is_closed():
                        connection = await self._server.connect(enable_seqscan="off")
                    group = Group(self._server, connection, jobs, lambda: self._closed)
                    try:
                        await group.commit()
                    finally:
                        self.commits += group.commits
                        self.conflicts += group.conflicts
                    jobs = []
                except Exception as error:
                    if connection is not None:
                        connection.terminate()
                        connection = None
                    jobs = self._still_waiting(jobs, error)
                    if jobs:
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, _LONGEST_PAUSE)
        if connection is not None:
            await _close(connection)

    async def _is_queued(self) -> bool:
        """Waits for work; False when the store is closed and there is none left."""
        while not self._queue:
            if self._closed:
                return False
            self._queued.clear()
            await self._queued.wait()
        return True

    def _take(self) -> list[Job]:
        return [self._queue.popleft() for _ in range(min(len(self._queue), _GROUP))]

    def _still_waiting(self, jobs: list[Job], error: Exception) -> list[Job]:
        """Tells those who have waited long enough that the database is away; returns the jobs that wait on."""
        if not is_away(error):
            _log.error("store_commit_failed", service=self._server.service, exc_info=error)
            for job in jobs:
                job.fail(error)
            return []
        failure = self._unavailable(error)
        _log.warning("store_unavailable", service=self._server.service, error=failure.message)
        late = asyncio.get_running_loop().time() - _PATIENCE_SECONDS
        for job in (*jobs, *self._queue):
            if not job.settled and (self._closed or job.since < late):
                job.fail(failure)
        self._queue = deque(job for job in self._queue if not job.settled)
        return [job for job in jobs if not job.settled]

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        return error if isinstance(error, StoreUnavailable) else self._server.unavailable(error)


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=2)
    except Exception as error:
        _log.debug("store_connection_not_closed", error=str(error))
        connection.terminate()
