"""What every store promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.notes import ONE, SCHEMA, adding, numbers
from turnwire.errors import SchemaUnsupported, StoreUnavailable
from turnwire.runtime.storage import Migration, Schema, SqliteStore, Store
from turnwire.runtime.storage.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from turnwire.runtime.storage import Transaction

    Opened = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens the store of the test, as often as it wants."""

    @asynccontextmanager
    async def open_store(schema: Schema = SCHEMA) -> AsyncGenerator[Store]:
        store: Store
        if request.param == "sqlite":
            store = await SqliteStore.open(tmp_path / "notes.sqlite3", schema)
        else:
            store = await PostgresStore.open(request.getfixturevalue("postgres"), schema)
        try:
            yield store
        finally:
            await store.close()

    return open_store


# Groups


async def test_units_that_wait_together_share_commits(opened: Opened):
    async with opened() as store:
        await store.write(adding(-1))
        before = store.commits
        writers = [asyncio.create_task(store.write(adding(number))) for number in range(400)]
        assert [1] * 400 == await asyncio.gather(*writers)
        assert store.commits - before < 40
        assert list(range(-1, 400)) == await numbers(store)


async def test_a_unit_that_fails_is_rolled_back_alone(opened: Opened):
    async def fails(tx: Transaction) -> None:
        await adding(1_000)(tx)
        raise KeyError("of the unit")

    async def awaits(tx: Transaction) -> None:
        await adding(1_001)(tx)
        await asyncio.sleep(0)

    async def clashes(tx: Transaction) -> None:
        await adding(1_002)(tx)
        await adding(1_002)(tx)

    async def misspells(tx: Transaction) -> None:
        await adding(1_003)(tx)
        await tx.execute("INSERT INTO notes (number, txt) VALUES ($1, $2)", 1_004, "")

    async with opened() as store:
        units = [adding(1), fails, adding(2), awaits, adding(3), clashes, adding(4), fails]
        results = await asyncio.gather(*(store.write(unit) for unit in units), return_exceptions=True)
        assert [1, 1, 1, 1] == results[::2]
        assert isinstance(results[1], KeyError)
        assert isinstance(results[3], RuntimeError)
        assert "something other than its transaction" in str(results[3])
        assert type(results[5]).__name__ in {"IntegrityError", "UniqueViolationError"}
        # Alone, it is rolled back as well.
        with pytest.raises(KeyError):
            await store.write(fails)
        with pytest.raises(Exception, match="txt"):
            await store.write(misspells)
        assert [1, 2, 3, 4] == await numbers(store)


async def test_the_unit_of_a_cancelled_caller_is_committed_all_the_same(opened: Opened):
    async with opened() as store:
        writers = [asyncio.create_task(store.write(adding(number))) for number in range(20)]
        await asyncio.sleep(0)
        for writer in writers:
            writer.cancel()
        results = await asyncio.gather(*writers, return_exceptions=True)
        assert [asyncio.CancelledError] * 20 == [type(result) for result in results]
        await store.write(adding(20))
    async with opened() as store:
        assert list(range(21)) == await numbers(store)


async def test_what_is_queued_is_committed_before_the_store_closes(opened: Opened):
    async with opened() as store:
        writers = [asyncio.create_task(store.write(adding(number))) for number in range(100)]
        await asyncio.sleep(0)
        await store.close()
        assert [1] * 100 == await asyncio.gather(*writers)
    async with opened() as store:
        assert list(range(100)) == await numbers(store)


async def test_a_closed_store_says_so_and_does_not_hang(opened: Opened):
    async with opened() as store:
        pass
    with pytest.raises(StoreUnavailable, match="is closed"):
        await store.write(adding(1))
    with pytest.raises(StoreUnavailable, match="is closed"):
        await numbers(store)


# One after the other


async def test_units_see_each_other_one_after_the_other(opened: Opened):
    """What is read and written back loses nothing, however many do it at once."""

    async def counts(tx: Transaction) -> int:
        row = await tx.fetchrow("SELECT number FROM notes WHERE text = $1", "count")
        assert row is not None
        await tx.execute("UPDATE notes SET number = $1 WHERE text = $2", int(row[0] or 0) + 1, "count")
        return int(row[0] or 0)

    async with opened() as store:
        await store.write(adding(0, "count"))
        seen = await asyncio.gather(*(store.write(counts) for _ in range(200)))
        assert list(range(200)) == sorted(seen)
        assert [200] == await numbers(store)


async def test_of_units_that_want_one_key_one_has_it_and_the_others_see_that(opened: Opened):
    async def takes(tx: Transaction) -> bool:
        if await tx.fetchrow("SELECT 1 FROM notes WHERE number = $1", 7) is not None:
            return False
        return bool(await adding(7)(tx))

    async with opened() as store:
        took = await asyncio.gather(*(store.write(takes) for _ in range(50)))
        assert 1 == took.count(True)
        assert 49 == took.count(False)


async def test_what_is_left_when_one_of_two_goes(opened: Opened):
    """Each goes only while the other is there: without an order of their own both would."""

    def leaves(own: int, other: int) -> Callable[[Transaction], Awaitable[bool]]:
        async def unit(tx: Transaction) -> bool:
            if await tx.fetchrow("SELECT 1 FROM notes WHERE number = $1", other) is None:
                return False
            return bool(await tx.execute("DELETE FROM notes WHERE number = $1", own))

        return unit

    async with opened() as store:
        for _ in range(20):
            await store.write(adding(1))
            await store.write(adding(2))
            left = await asyncio.gather(store.write(leaves(1, 2)), store.write(leaves(2, 1)))
            assert [False, True] == sorted(left)
            await store.write(lambda tx: tx.execute("DELETE FROM notes"))


# Reading


async def test_a_read_sees_one_state_of_the_database(opened: Opened):
    async def twice(tx: Transaction) -> list[Any]:
        return [await tx.fetchrow("SELECT count(*) FROM notes") for _ in range(20)]

    async with opened() as store:
        writing = asyncio.gather(*(store.write(adding(number)) for number in range(300)))
        counted: list[Any] = []
        while not writing.done():
            seen = await store.read(twice)
            assert 1 == len(set(seen))
            counted.append(seen[0][0])
        await writing
        assert counted == sorted(counted)


async def test_a_read_that_ends_early_or_in_an_error_leaves_the_store_as_it_was(opened: Opened):
    async def fails(tx: Transaction) -> None:
        await tx.fetch("SELECT number FROM notes")
        raise KeyError("of the unit")

    async with opened() as store:
        await store.write(adding(1))
        for _ in range(10):
            reading = asyncio.create_task(numbers(store))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            with pytest.raises(KeyError):
                await store.read(fails)
        # A state that a reader has left open would be all that later ones see.
        await store.write(adding(2))
        assert [[1, 2]] * 9 == await asyncio.gather(*(numbers(store) for _ in range(9)))


async def test_a_read_cannot_write(opened: Opened):
    async with opened() as store:
        with pytest.raises(StoreUnavailable, match=r"read-?only"):
            await store.read(adding(1))
        assert [] == await numbers(store)


# Values


async def test_values_come_back_as_they_were(opened: Opened):
    rows: list[tuple[Any, ...]] = [
        (-(2**63), "", b"", 0.1),
        (2**63 - 1, "größer 😀 'quoted' $1", bytes(range(256)), -1e300),
        (0, "x" * 100_000, None, None),
        (1, "a\0b\0", b"\0", 0.0),
        (2, "\U0010ffff\0\U0010ffff0\U0010ffff1", b"", 0.0),
    ]

    async def unit(tx: Transaction) -> None:
        for row in rows:
            await tx.execute("INSERT INTO notes (number, text, body, weight) VALUES ($1, $2, $3, $4)", *row)

    async with opened() as store:
        await store.write(unit)
        read = await store.read(lambda tx: tx.fetch("SELECT number, text, body, weight FROM notes ORDER BY number"))
        assert sorted(rows, key=lambda row: row[0]) == read
        one = await store.read(lambda tx: tx.fetchrow("SELECT number FROM notes WHERE body = $1", b""))
        assert (-(2**63),) == one
        assert (1,) == await store.read(lambda tx: tx.fetchrow("SELECT number FROM notes WHERE text = $1", "a\0b\0"))


async def test_many_rows_are_one_call(opened: Opened):
    rows = [(number, "x", None if number % 2 else b"y", 0.5) for number in range(500)]
    sql = "INSERT INTO notes (number, text, body, weight) VALUES ($1, $2, $3, $4)"
    async with opened() as store:
        await store.write(lambda tx: tx.execute_many(sql, rows))
        await store.write(lambda tx: tx.execute_many(sql, []))
        read = await store.read(lambda tx: tx.fetch("SELECT number, text, body, weight FROM notes ORDER BY number"))
        assert rows == read
        with pytest.raises(Exception, match=r"(?i)unique"):
            await store.write(lambda tx: tx.execute_many(sql, [(1_000, "x", b"", 0.0), (7, "x", None, 0.0)]))
        assert 500 == len(await numbers(store))


async def test_an_error_that_a_unit_hides_fails_it_all_the_same(opened: Opened):
    async def hides(tx: Transaction) -> str:
        await adding(1)(tx)
        try:
            await adding(1)(tx)
        except Exception:
            return "as if nothing had happened"
        return "nothing has happened"

    async with opened() as store:
        results = await asyncio.gather(store.write(hides), store.write(adding(2)), return_exceptions=True)
        assert type(results[0]).__name__ in {"IntegrityError", "UniqueViolationError"}
        assert [2] == await numbers(store)


async def test_a_placeholder_has_the_type_of_its_value(opened: Opened):
    async def unit(tx: Transaction) -> list[Any]:
        large = 2**40
        return [
            await tx.fetchrow("SELECT CASE WHEN $1 = 0 THEN 5 ELSE $1 END", large),
            await tx.fetchrow("SELECT $1 + 1", large),
            await tx.fetchrow("SELECT count(*) FROM notes WHERE $1 = '' OR text = $1", "it"),
            await tx.fetchrow("SELECT coalesce(sum(number), 0), max(number) FROM notes"),
            await tx.fetchrow("SELECT count(*) FROM notes WHERE number IN ($1, $2)", 1, large),
            await tx.execute("UPDATE notes SET body = $1, weight = $2 WHERE number = $3", None, None, 1),
        ]

    async with opened() as store:
        await store.write(adding(1, "it"))
        await store.write(adding(2**40))
        assert [(2**40,), (2**40 + 1,), (1,), (2**40 + 1, 2**40), (2,), 1] == await store.write(unit)


async def test_texts_are_ordered_by_their_bytes(opened: Opened):
    texts = ["Z", "a", "B", "b-1", "b1", "ä", "_", "~", "aa", "A"]

    async def unit(tx: Transaction) -> None:
        for number, text in enumerate(texts):
            await adding(number, text)(tx)

    async with opened() as store:
        await store.write(unit)
        read = await store.read(lambda tx: tx.fetch("SELECT text FROM notes ORDER BY text"))
        assert sorted(texts, key=str.encode) == [row[0] for row in read]
        after = await store.read(lambda tx: tx.fetch("SELECT text FROM notes WHERE text > $1 ORDER BY text", "_"))
        assert [text for text in sorted(texts, key=str.encode) if text > "_"] == [row[0] for row in after]


# What replicas share


async def test_a_unit_and_the_store_tell_the_time_by_one_clock(opened: Opened):
    async with opened() as store:
        before = await store.now()
        within = await store.write(lambda tx: tx.now())
        reading = await store.read(lambda tx: tx.now())
        after = await store.now()
    assert [before, within, reading, after] == sorted([before, within, reading, after])
    assert abs(time.time() - after / 1_000_000) < 60


async def test_a_notice_is_heard_after_the_commit_and_never_without_one(opened: Opened):
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def tells(tx: Transaction) -> None:
        await adding(1)(tx)
        await tx.notify("notes", "there is a note\nof two lines")

    async def fails(tx: Transaction) -> None:
        await tx.notify("notes", "there is none")
        raise KeyError("of the unit")

    async with opened() as store:
        end = store.listen("notes", heard.put_nowait)
        store.listen("others", heard.put_nowait)
        # A hint may be lost, as long as nobody listens yet.
        while heard.empty():
            await store.write(lambda tx: tx.notify("others", "ready"))
            await asyncio.sleep(0.01)
        with pytest.raises(KeyError):
            await store.write(fails)
        await store.write(tells)
        while (said := await asyncio.wait_for(heard.get(), 10)) == "ready":
            pass
        assert "there is a note\nof two lines" == said
        assert [1] == await numbers(store)
        end()
        await store.write(lambda tx: tx.notify("notes", "nobody listens"))
        await store.write(lambda tx: tx.notify("others", "the end"))
        assert "the end" == await asyncio.wait_for(heard.get(), 10)


async def test_one_listener_that_fails_keeps_nothing_from_the_others(opened: Opened):
    heard: asyncio.Queue[str] = asyncio.Queue()

    def fails(text: str) -> None:
        raise KeyError(text)

    async with opened() as store:
        store.listen("notes", fails)
        store.listen("notes", heard.put_nowait)
        while heard.empty():
            await store.write(lambda tx: tx.notify("notes", "ready"))
            await asyncio.sleep(0.01)
        assert 1 == await store.write(adding(1))


# Schemas


async def test_a_newer_schema_is_refused_and_left_as_it_is(opened: Opened):
    newer = Schema("notes", (ONE, Migration(2, ("CREATE TABLE more (a BIGINT)",))))
    async with opened(newer) as store:
        await store.write(adding(1))
    with pytest.raises(SchemaUnsupported) as refused:
        async with opened():
            pass
    assert ("2", "1") == (refused.value.metadata["schema_version"], refused.value.metadata["supported"])
    async with opened(newer) as store:
        assert [1] == await numbers(store)


async def test_an_older_schema_is_brought_up_to_date_with_what_it_holds(opened: Opened):
    async with opened() as store:
        await store.write(adding(1))
    newer = Schema("notes", (ONE, Migration(2, ("ALTER TABLE notes ADD COLUMN more TEXT DEFAULT 'yes'",))))
    async with opened(newer) as store:
        assert [("yes",)] == await store.read(lambda tx: tx.fetch("SELECT more FROM notes"))
    with pytest.raises(SchemaUnsupported):
        async with opened():
            pass


async def test_a_migration_that_fails_leaves_the_version_before_it(opened: Opened):
    wrong = Schema("notes", (ONE, Migration(2, ("CREATE TABLE more (a BIGINT)", "CREATE TABLE notes (a BIGINT)"))))
    with pytest.raises(StoreUnavailable, match="already exists"):
        async with opened(wrong):
            pass
    async with opened() as store:
        await store.write(adding(1))
        assert [1] == await numbers(store)
        with pytest.raises(Exception, match="more"):
            await store.write(lambda tx: tx.fetch("SELECT a FROM more"))
