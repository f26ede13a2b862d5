"""What PostgreSQL adds: replicas that share a store, and a server that goes away and comes back."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import structlog

from tests.runtime.notes import ONE, SCHEMA, adding, numbers
from tests.runtime.serving import ROOT
from turnwire.cli.stores import SCHEMAS, schema_of
from turnwire.errors import SchemaUnsupported, StoreUnavailable
from turnwire.runtime.storage import Migration, Schema
from turnwire.runtime.storage.postgres import PostgresServer, PostgresStore, migrate, present_version
from turnwire.runtime.storage.postgres import store as store_module
from turnwire.testing.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from pathlib import Path

    from turnwire.runtime.storage import Transaction


@asynccontextmanager
async def opened(url: str, schema: Schema = SCHEMA, **arguments: Any) -> AsyncGenerator[PostgresStore]:
    store = await PostgresStore.open(url, schema, **arguments)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def own_server() -> Generator[Postgres]:
    """A server that a test may end."""
    with running_postgres(durable=False) as server:
        yield server


# Replicas


async def test_units_of_replicas_are_as_good_as_one_after_the_other(postgres: str):
    async def counts(tx: Transaction) -> int:
        row = await tx.fetchrow("SELECT number FROM notes WHERE text = $1", "count")
        assert row is not None
        await tx.execute("UPDATE notes SET number = $1 WHERE text = $2", int(row[0] or 0) + 1, "count")
        return int(row[0] or 0)

    async with opened(postgres) as first, opened(postgres) as second, opened(postgres) as third:
        stores = [first, second, third]
        await first.write(adding(0, "count"))
        seen: list[int] = []

        async def one(store: PostgresStore) -> None:
            for _ in range(40):
                seen.append(await store.write(counts))

        await asyncio.gather(*(one(store) for store in stores))
        assert list(range(120)) == sorted(seen)
        assert [120] == await numbers(second)
        # They really came in between each other.
        assert sum(store.conflicts for store in stores) > 0


async def test_replicas_that_each_rely_on_what_the_other_changes_do_not_both_succeed(postgres: str):
    def leaves(own: int, other: int) -> Callable[[Transaction], Awaitable[bool]]:
        async def unit(tx: Transaction) -> bool:
            if await tx.fetchrow("SELECT 1 FROM notes WHERE number = $1", other) is None:
                return False
            return bool(await tx.execute("DELETE FROM notes WHERE number = $1", own))

        return unit

    async with opened(postgres) as first, opened(postgres) as second:
        for _ in range(30):
            await first.write(adding(1))
            await first.write(adding(2))
            left = await asyncio.gather(first.write(leaves(1, 2)), second.write(leaves(2, 1)))
            assert [False, True] == sorted(left)
            await first.write(lambda tx: tx.execute("DELETE FROM notes"))


async def test_a_key_that_another_replica_has_just_taken_is_seen_by_a_second_run(
    postgres: str, postgres_server: Postgres
):
    runs = 0

    async def takes(tx: Transaction) -> str:
        nonlocal runs
        runs += 1
        if await tx.fetchrow("SELECT 1 FROM notes WHERE number = $1", 7) is not None:
            return "it is there"
        if runs == 1:
            # Between the look and the insertion another one commits.
            postgres_server.psql("INSERT INTO turnwire_notes.notes VALUES (7, 'first')", _database(postgres))
        await adding(7)(tx)
        return "added"

    async with opened(postgres) as store:
        together = await asyncio.gather(store.write(adding(1)), store.write(takes), store.write(adding(2)))
        assert [1, "it is there", 1] == together
        assert 2 == runs
        assert [1, 2, 7] == await numbers(store)


async def test_replicas_that_start_at_once_migrate_once(postgres: str):
    versions = tuple(Migration(number, (f"CREATE TABLE t{number} (a BIGINT)",)) for number in range(2, 6))
    schema = Schema("notes", (ONE, *versions))
    applied = await asyncio.gather(*(migrate(PostgresServer(postgres, "notes"), schema) for _ in range(8)))
    assert [1, 2, 3, 4, 5] == sorted(version for each in applied for version in each)
    assert 5 == await present_version(PostgresServer(postgres, "notes"))
    with pytest.raises(SchemaUnsupported, match="schema turnwire_notes"):
        await PostgresStore.open(postgres, SCHEMA)


async def test_every_text_is_compared_by_its_bytes_whatever_language_the_database_speaks(
    postgres: str, postgres_server: Postgres
):
    for service in SCHEMAS:
        schema = schema_of(service)
        await migrate(PostgresServer(postgres, schema.name), schema)
    text = "SELECT count(*) FROM information_schema.columns WHERE data_type = 'text' AND table_schema LIKE 'turnwire%'"
    by_bytes = f"{text} AND collation_name = 'C'"
    counted = [int(postgres_server.psql(sql, _database(postgres))) for sql in (text, by_bytes)]
    assert counted[0] == counted[1] > 50


async def test_a_user_who_may_not_create_schemas_uses_the_one_that_was_made(postgres: str, postgres_server: Postgres):
    user = f"plain_{_database(postgres)}"
    postgres_server.psql(f"CREATE USER {user}")
    url = postgres.replace("postgresql://postgres@", f"postgresql://{user}@")
    with pytest.raises(StoreUnavailable, match=r"permission denied .* GRANT CREATE ON DATABASE"):
        await PostgresStore.open(url, SCHEMA)
    postgres_server.psql(f"CREATE SCHEMA turnwire_notes AUTHORIZATION {user}", _database(postgres))
    async with opened(url) as store:
        assert 1 == await store.write(adding(1))
    postgres_server.psql(f"DROP OWNED BY {user}; DROP USER {user}", _database(postgres))


async def test_a_notice_reaches_every_replica(postgres: str):
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with opened(postgres) as first, opened(postgres) as second:
        first.listen("turns", lambda text: heard.put_nowait(f"first {text}"))
        second.listen("turns", lambda text: heard.put_nowait(f"second {text}"))
        await asyncio.gather(first._hearing.ready.wait(), second._hearing.ready.wait())
        await second.write(lambda tx: tx.notify("turns", "poked"))
        said = {await asyncio.wait_for(heard.get(), 10) for _ in range(2)}
        assert {"first poked", "second poked"} == said


async def test_the_clock_is_the_servers(postgres: str, monkeypatch: pytest.MonkeyPatch):
    async with opened(postgres) as store:
        before = await store.now()
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        assert 0 <= await store.now() - before < 60_000_000
        assert 0 <= await store.write(lambda tx: tx.now()) - before < 60_000_000


async def test_a_reader_whose_caller_leaves_keeps_its_connection(postgres: str):
    entered = asyncio.Event()

    async def asks(tx: Transaction) -> Any:
        entered.set()
        return await tx.fetchrow("SELECT pg_backend_pid() FROM pg_sleep(0.05)")

    async with opened(postgres, connections=2) as store:
        before = await store.read(asks)
        for _ in range(3):
            entered.clear()
            reading = asyncio.create_task(store.read(asks))
            await entered.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert before == await store.read(asks)


# The server goes away and comes back


@pytest.mark.faults
@pytest.mark.everyday
async def test_writes_go_on_over_a_restart_and_nothing_acknowledged_is_lost(own_server: Postgres):
    chance = random.Random(7)
    acknowledged: list[int] = []
    refused: list[int] = []

    async def write_on(store: PostgresStore, first: int, ended: asyncio.Event) -> None:
        number = first
        while not ended.is_set():
            try:
                await store.write(adding(number, "x" * 200))
            except StoreUnavailable:
                refused.append(number)
            else:
                acknowledged.append(number)
            number += 10

    with own_server.database() as url:
        async with opened(url) as store:
            ended = asyncio.Event()
            writers = [asyncio.create_task(write_on(store, first, ended)) for first in range(10)]
            for end in (own_server.kill, own_server.stop, own_server.kill, own_server.kill):
                there = len(acknowledged)
                wanted = there + chance.randint(20, 300)
                while len(acknowledged) < wanted:
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(end)
                await asyncio.to_thread(own_server.start)
            wanted = len(acknowledged) + 100
            while len(acknowledged) < wanted:
                await asyncio.sleep(0.001)
            ended.set()
            await asyncio.gather(*writers)
            # What was refused is not there, so that it can be asked for again; all the rest is.
            assert sorted(acknowledged) == await numbers(store)


@pytest.mark.faults
async def test_a_server_that_stays_away_is_told_and_not_waited_for(own_server: Postgres):
    with own_server.database() as url:
        async with opened(url) as store:
            await store.write(adding(1))
            await asyncio.to_thread(own_server.kill)
            began = time.monotonic()
            results = await asyncio.gather(
                *(store.write(adding(number)) for number in range(2, 200)),
                numbers(store),
                store.now(),
                return_exceptions=True,
            )
            assert {StoreUnavailable} == {type(result) for result in results}
            assert time.monotonic() - began < 4 * store_module._PATIENCE_SECONDS
            await asyncio.to_thread(own_server.start)
            assert 1 == await store.write(adding(1_000))
            assert [1, 1_000] == await numbers(store)


@pytest.mark.faults
async def test_a_server_that_hangs_is_told_too(own_server: Postgres, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("turnwire.runtime.storage.postgres.server._STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr("turnwire.runtime.storage.postgres.server._CONNECT_SECONDS", 1)
    with own_server.database() as url:
        async with opened(url) as store:
            await store.write(adding(1))
            with own_server.frozen():
                results = await asyncio.gather(store.write(adding(2)), numbers(store), return_exceptions=True)
                assert [StoreUnavailable] * 2 == [type(result) for result in results]
            assert 1 == await store.write(adding(3))
            assert [1, 3] == await numbers(store)


@pytest.mark.faults
@pytest.mark.everyday
async def test_notices_are_heard_again_after_a_restart(own_server: Postgres):
    heard: asyncio.Queue[str] = asyncio.Queue()
    with own_server.database() as url:
        async with opened(url) as store:
            store.listen("turns", heard.put_nowait)
            await store._hearing.ready.wait()
            await asyncio.to_thread(own_server.kill)
            while store._hearing.ready.is_set():
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_server.start)
            await store._hearing.ready.wait()
            await store.write(lambda tx: tx.notify("turns", "again"))
            assert "again" == await asyncio.wait_for(heard.get(), 10)


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_commit_without_an_answer_is_looked_up(own_server: Postgres, arrives: bool):
    """The connection ends with the commit under way: the caller is told what really became of it."""
    runs = 0

    async def unit(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        return await adding(runs)(tx)

    with own_server.database() as url:
        async with _cutting(own_server, arrives) as cut, opened(cut.through(url)) as store:
            cut.armed = True
            with structlog.testing.capture_logs() as logs:
                assert 1 == await store.write(unit)
            states = [each["state"] for each in logs if each["event"] == "store_commit_settled"]
            if arrives:
                assert ["committed"] == states
                assert 1 == runs
            else:
                assert ["aborted"] == states
                assert 2 == runs
            assert [runs] == await numbers(store)


@pytest.mark.faults
async def test_a_process_that_is_stopped_within_a_transaction_holds_nobody_up(own_server: Postgres):
    """The server ends a transaction that nobody goes on with: its locks would last as long as the process."""
    script = """
import asyncio, os, signal, sys
from tests.runtime.test_postgres_store import opened
async def main():
    async with opened(sys.argv[1]) as store:
        async def unit(tx):
            await tx.execute("UPDATE notes SET text = 'held' WHERE number = 1")
            os.kill(os.getpid(), signal.SIGSTOP)
        await store.write(unit)
asyncio.run(main())
"""
    with own_server.database() as url:
        async with opened(url) as store:
            await store.write(adding(1))
            process = await asyncio.to_thread(_process, script, url)
            try:
                while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                    await asyncio.sleep(0.01)
                sql = "UPDATE notes SET text = 'free' WHERE number = 1"
                assert 1 == await store.write(lambda tx: tx.execute(sql))
            finally:
                process.kill()
                await asyncio.to_thread(process.communicate)
            assert [("free",)] == await store.read(lambda tx: tx.fetch("SELECT text FROM notes"))


# Addresses


async def test_no_password_is_shown(own_server: Postgres):
    own_server.psql("CREATE USER guarded PASSWORD 'right-s3cret'")
    hba = own_server.folder / "data" / "pg_hba.conf"
    hba.write_text("local all all trust\nhost all guarded all scram-sha-256\n")
    own_server.psql("SELECT pg_reload_conf()")
    with own_server.database() as url:
        database = _database(url)
        own_server.psql(f"GRANT CREATE ON DATABASE {database} TO guarded")
        right, wrong = (
            own_server.url(database, tcp=True, user="guarded", password=password)
            for password in ("right-s3cret", "wrong-s3cret")
        )
        async with opened(right) as store:
            assert 1 == await store.write(adding(1))
            assert "s3cret" not in store._server.where
        nowhere = wrong.replace(str(own_server.port), "1")
        absent = right.replace(database, "absent")
        for url_, said in ((wrong, "password"), (nowhere, "is PostgreSQL running there"), (absent, "createdb")):
            with pytest.raises(StoreUnavailable, match=said) as refused:
                await PostgresStore.open(url_, SCHEMA)
            assert "s3cret" not in refused.value.message
            assert refused.value.__cause__ is None
            assert "127.0.0.1" in refused.value.message


async def test_tls_is_asked_for_in_the_address(own_server: Postgres, tmp_path: Path):
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, made, check=True, capture_output=True)
    encrypting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    encrypting.load_cert_chain(certificate, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # This build of PostgreSQL has no TLS: what it would do stands before it.
        assert b"\x00\x00\x00\x08\x04\xd2\x16\x2f" == await reader.readexactly(8)
        writer.write(b"S")
        try:
            await writer.start_tls(encrypting)
        except ssl.SSLError:
            return  # the client does not trust it
        inner = await asyncio.open_unix_connection(f"{own_server.folder}/.s.PGSQL.{own_server.port}")
        await asyncio.gather(_relay(reader, inner[1]), _relay(inner[0], writer))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    with own_server.database() as url:
        plain = own_server.url(_database(url), tcp=True)
        with pytest.raises(StoreUnavailable, match="SSL"):
            await PostgresStore.open(f"{plain}?sslmode=require", SCHEMA)
        encrypted = f"postgresql://postgres@127.0.0.1:{port}/{_database(url)}?sslmode=verify-full"
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            await PostgresStore.open(f"{encrypted}&sslrootcert={_another_authority(tmp_path)}", SCHEMA)
        async with opened(f"{encrypted}&sslrootcert={certificate}") as store:
            assert 1 == await store.write(adding(1))
    listening.close()


def _another_authority(folder: Path) -> Path:
    certificate = folder / "other.crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=other"]
    subprocess.run([*made, "-keyout", folder / "other.key", "-out", certificate], check=True, capture_output=True)
    return certificate


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the other side is gone, which ends this one too
    finally:
        writer.close()


def _database(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def _process(script: str, *arguments: str) -> subprocess.Popen[str]:
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"}
    return subprocess.Popen([sys.executable, "-c", script, *arguments], text=True, env=environ)


class _Cut:
    """A wire to the server that breaks once, at the next commit."""

    def __init__(self, port: int, arrives: bool) -> None:
        self.armed = False
        self._port = port
        self._arrives = arrives

    def through(self, url: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/{_database(url)}"

    async def to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Passes on what the client says; False when the wire is to break."""
        while data := await reader.read(65_536):
            breaks = self.armed and b"COMMIT" in data
            if self._arrives or not breaks:
                writer.write(data)
                await writer.drain()
            if breaks:
                self.armed = False
                return False
        return True


@asynccontextmanager
async def _cutting(server: Postgres, arrives: bool) -> AsyncGenerator[_Cut]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(f"{server.folder}/.s.PGSQL.{server.port}")
        answering = asyncio.create_task(_relay(from_server, writer))
        try:
            whole = await cut.to_server(reader, to_server)
            if not whole and arrives:
                # The answer has come, and goes no further.
                answering.cancel()
                await from_server.read(1)
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            writer.transport.abort()
            to_server.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    cut = _Cut(listening.sockets[0].getsockname()[1], arrives)
    try:
        yield cut
    finally:
        listening.close()
