"""Units that are committed together: each in a savepoint, all again when another transaction came in between."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import structlog

from turnwire.errors import StoreUnavailable
from turnwire.runtime.storage.postgres.failures import Kind, kind_of
from turnwire.runtime.storage.postgres.server import is_away
from turnwire.runtime.storage.postgres.transaction import PostgresTransaction, driven

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnwire.runtime.storage.postgres.server import PostgresServer

_log = structlog.get_logger(__name__)
_TOGETHER = 3
"""After so many conflicts the units of a group are committed one by one: what conflicts is smaller then."""
_CONFLICT_SECONDS = 15.0
_LONGEST_PAUSE = 0.1
_BEGIN = "BEGIN ISOLATION LEVEL SERIALIZABLE"


class Job:
    """A unit that is queued, and who waits for it."""

    __slots__ = ("future", "settled", "since", "taken", "unit")

    def __init__(self, unit: Any, future: asyncio.Future[Any], since: float) -> None:
        """Waits since a time of the loop."""
        self.unit = unit
        self.future = future
        self.since = since
        self.settled = False
        """True once its outcome is known; its caller may have gone before."""
        self.taken = False
        """True after a run that found a key taken."""

    def settle(self, result: Any) -> None:
        """Gives the caller what the unit has returned."""
        self.settled = True
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Raises an error where the caller waits."""
        self.settled = True
        if not self.future.done():
            self.future.set_exception(error)


class Group:
    """The units of one commit, or of several when they conflict."""

    def __init__(
        self, server: PostgresServer, connection: Any, jobs: Sequence[Job], is_closing: Callable[[], bool]
    ) -> None:
        """Runs `jobs` on a connection; nothing is waited for that may take long when the store is closing."""
        self.commits = 0
        self.conflicts = 0
        self._server = server
        self._connection = connection
        self._jobs = jobs
        self._is_closing = is_closing

    async def commit(self) -> None:
        """Commits the units and settles their jobs.

        Raises:
            Exception: the database, or the connection, is away; nothing is stored of the jobs that are not settled.
        """
        await self._commit([job for job in self._jobs if not job.settled])

    async def _commit(self, jobs: list[Job]) -> None:
        began = asyncio.get_running_loop().time()
        attempt = 0
        while jobs:
            if attempt >= _TOGETHER and len(jobs) > 1:
                for job in jobs:
                    await self._commit([job])
                return
            if await self._run(jobs):
                # Left is what found a key taken: by then it sees who has it.
                jobs = [job for job in jobs if not job.settled]
                continue
            attempt += 1
            self.conflicts += 1
            if asyncio.get_running_loop().time() - began > _CONFLICT_SECONDS:
                told = f"{self._server.where}: other transactions came in between {attempt} times"
                for job in jobs:
                    job.fail(StoreUnavailable(self._server.service, told))
                return
            await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.002 * 2**attempt)))  # noqa: S311 - no secret

    async def _run(self, jobs: list[Job]) -> bool:
        """Runs and commits jobs; False after a conflict, and then nothing is stored."""
        try:
            await self._run_once(jobs)
        except Exception as error:
            if kind_of(error) is not Kind.CONFLICT:
                raise
            _log.debug("store_conflict", service=self._server.service, units=len(jobs), error=str(error))
            await self._connection.execute("ROLLBACK")
            return False
        return True

    async def _run_once(self, jobs: list[Job]) -> None:
        several = len(jobs) > 1
        await self._connection.execute(f"{_BEGIN}; SAVEPOINT unit" if several else _BEGIN)
        outcomes: list[tuple[Job, Any, Exception | None]] = []
        for number, job in enumerate(jobs):
            if number:
                await self._connection.execute("RELEASE SAVEPOINT unit; SAVEPOINT unit")
            result, error = await self._run_unit(job)
            if error is not None:
                await self._connection.execute("ROLLBACK TO SAVEPOINT unit" if several else "ROLLBACK")
                if kind_of(error) is Kind.TAKEN and not job.taken:
                    job.taken = True
                    continue
            outcomes.append((job, result, error))
        if several or any(error is None for _, _, error in outcomes):
            await self._end()
        for job, result, error in outcomes:
            if error is not None:
                job.fail(error)
            else:
                job.settle(result)

    async def _run_unit(self, job: Job) -> tuple[Any, Exception | None]:
        """Returns a unit's result, or the error that is its own; raises those that concern the whole group."""
        transaction = PostgresTransaction(self._connection, self._server.schema)
        result: Any = None
        failure: BaseException | None = None
        try:
            result = await driven(job.unit(transaction), transaction)
        except Exception as error:
            failure = error
        # A unit may have made something else of an error, or nothing: the transaction is no good all the same.
        failure = transaction.failure or failure
        if failure is None:
            return result, None
        if not isinstance(failure, Exception) or kind_of(failure) in {Kind.CONFLICT, Kind.AWAY}:
            raise failure
        return None, failure

    async def _end(self) -> None:
        """Commits; returns when that is certain."""
        number: str | None = await self._connection.fetchval("SELECT pg_current_xact_id_if_assigned()::text")
        try:
            status: str = await self._connection.execute("COMMIT")
        except Exception as error:
            if number is None or not is_away(error):
                raise
            self._connection.terminate()
            if not await self._is_committed(number):
                raise
            status = "COMMIT"
        if status != "COMMIT":
            raise RuntimeError(f"PostgreSQL answered COMMIT with {status}")
        self.commits += 1

    async def _is_committed(self, number: str) -> bool:
        """Finds out, as soon as the database is back, whether a transaction took whose commit was not answered.

        Raises:
            StoreUnavailable: the store closes before that can be known.
        """
        _log.warning("store_commit_in_doubt", service=self._server.service, transaction=number)
        pause = 0.02
        while True:
            try:
                connection = await self._server.connect()
                try:
                    state: str | None = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", number)
                finally:
                    connection.terminate()
            except Exception as error:
                if not is_away(error):
                    return False  # a server that has never heard of this number
            else:
                if state != "in progress":
                    _log.warning("store_commit_settled", service=self._server.service, transaction=number, state=state)
                    return state == "committed"
            if self._is_closing():
                told = f"{self._server.where}: whether the last commit took is not known, the server being away"
                raise StoreUnavailable(self._server.service, told)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
