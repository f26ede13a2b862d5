"""The store: what it has acknowledged is there, whatever happens; what failed has left nothing."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.notes import ONE, SCHEMA, adding, numbers
from tests.runtime.serving import ROOT
from turnwire.errors import SchemaUnsupported, StoreUnavailable
from turnwire.runtime.storage import Migration, Schema, SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from turnwire.runtime.storage import Transaction


@asynccontextmanager
async def opened(path: Path, schema: Schema = SCHEMA) -> AsyncGenerator[SqliteStore]:
    store = await SqliteStore.open(path, schema)
    try:
        yield store
    finally:
        await store.close()


class Gate:
    """A unit that holds the writer up, so that others gather behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    async def __call__(self, tx: Transaction) -> None:
        self.entered.set()
        assert self.open.wait(30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "notes.sqlite3"


# Groups


async def test_many_writers_share_a_commit(path: Path):
    async with opened(path) as store:
        gate = Gate()
        before = store.commits
        held = asyncio.create_task(store.write(gate))
        await asyncio.to_thread(gate.entered.wait)
        writers = [asyncio.create_task(store.write(adding(number))) for number in range(400)]
        await asyncio.sleep(0)  # each has queued its unit
        gate.open.set()
        assert [1] * 400 == await asyncio.gather(*writers)
        await held
        assert 2 == store.commits - before
        assert list(range(400)) == await numbers(store)


async def test_a_group_is_bounded(path: Path):
    async with opened(path) as store:
        gate = Gate()
        before = store.commits
        held = asyncio.create_task(store.write(gate))
        await asyncio.to_thread(gate.entered.wait)
        writers = [asyncio.create_task(store.write(adding(number))) for number in range(600)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(held, *writers)
        assert 3 == store.commits - before


async def test_a_unit_that_fails_is_rolled_back_alone(path: Path):
    async def fails(tx: Transaction) -> None:
        await adding(1_000)(tx)
        raise KeyError("of the unit")

    async def awaits(tx: Transaction) -> None:
        await adding(1_001)(tx)
        await asyncio.sleep(0)

    async def clashes(tx: Transaction) -> None:
        await adding(1_002)(tx)
        await adding(1_002)(tx)

    async with opened(path) as store:
        gate = Gate()
        held = asyncio.create_task(store.write(gate))
        await asyncio.to_thread(gate.entered.wait)
        units = [adding(1), fails, adding(2), awaits, adding(3), clashes, adding(4)]
        writers = [asyncio.create_task(store.write(unit)) for unit in units]
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(*writers, return_exceptions=True)
        await held
        assert [1, 1, 1, 1] == results[::2]
        assert [KeyError, RuntimeError, sqlite3.IntegrityError] == [type(error) for error in results[1::2]]
        assert [1, 2, 3, 4] == await numbers(store)


async def test_the_unit_of_a_cancelled_caller_is_committed_all_the_same(path: Path):
    async with opened(path) as store:
        gate = Gate()
        held = asyncio.create_task(store.write(gate))
        await asyncio.to_thread(gate.entered.wait)
        writer = asyncio.create_task(store.write(adding(1)))
        await asyncio.sleep(0)
        writer.cancel()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await writer
        await held
        await store.write(adding(2))
        assert [1, 2] == await numbers(store)


async def test_what_is_queued_is_committed_before_the_store_closes(path: Path):
    async with opened(path) as store:
        gate = Gate()
        held = asyncio.create_task(store.write(gate))
        await asyncio.to_thread(gate.entered.wait)
        writers = [asyncio.create_task(store.write(adding(number))) for number in range(10)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(held, closing, *writers)
    async with opened(path) as store:
        assert list(range(10)) == await numbers(store)


async def test_a_read_sees_one_state_of_the_database(path: Path):
    first, second = threading.Event(), threading.Event()

    async def twice(tx: Transaction) -> list[Any]:
        before = await tx.fetchrow("SELECT count(*) FROM notes")
        first.set()
        assert second.wait(30)
        return [before, await tx.fetchrow("SELECT count(*) FROM notes")]

    async with opened(path) as store:
        await store.write(adding(1))
        reading = asyncio.create_task(store.read(twice))
        await asyncio.to_thread(first.wait)
        # The reader does not hold the writer up.
        await store.write(adding(2))
        second.set()
        assert [(1,), (1,)] == await reading
        assert [1, 2] == await numbers(store)


async def test_the_loop_goes_on_while_the_writer_works(path: Path):
    async with opened(path) as store:
        gate = Gate()
        held = asyncio.create_task(store.write(gate))
        await asyncio.to_thread(gate.entered.wait)
        ticks = 0
        for _ in range(100):
            await asyncio.sleep(0)
            ticks += 1
        assert not held.done()
        gate.open.set()
        await held
        assert 100 == ticks


# Schemas


async def test_a_newer_schema_is_refused_and_left_as_it_is(path: Path):
    newer = Schema("notes", (ONE, Migration(2, ("CREATE TABLE more (a BIGINT)",))))
    async with opened(path, newer) as store:
        await store.write(adding(1))
    before = path.read_bytes()
    with pytest.raises(SchemaUnsupported) as refused:
        async with opened(path):
            pass
    assert ("2", "1") == (refused.value.metadata["schema_version"], refused.value.metadata["supported"])
    assert str(path) in refused.value.message
    assert before == path.read_bytes()
    # The refusal has let go of the lock.
    async with opened(path, newer) as store:
        assert [1] == await numbers(store)


async def test_a_migration_that_fails_leaves_the_version_before_it(path: Path):
    async with opened(path) as store:
        await store.write(adding(1))
    wrong = Schema("notes", (ONE, Migration(2, ("CREATE TABLE more (a BIGINT)", "CREATE TABLE notes (a BIGINT)"))))
    with pytest.raises(StoreUnavailable, match="already exists"):
        async with opened(path, wrong):
            pass
    async with opened(path) as store:
        assert [1] == await numbers(store)
        assert [] == await store.read(lambda tx: tx.fetch("SELECT name FROM sqlite_master WHERE name = 'more'"))


async def test_a_file_that_is_no_database_is_refused(path: Path):
    path.parent.mkdir()
    path.write_bytes(b"this is no database, and long enough to be read as one" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        async with opened(path):
            pass


async def test_a_file_that_is_broken_inside_is_told_as_such(path: Path):
    async with opened(path) as store:
        for number in range(50):
            await store.write(adding(number, "x" * 2_000))
    with path.open("r+b") as file:
        # All pages but those that say what the file is, and of which version.
        file.seek(8_192)
        file.write(b"\xa5" * (path.stat().st_size - 8_192))
    async with opened(path) as store:
        with pytest.raises(StoreUnavailable, match="malformed"):
            await store.write(adding(100))
        with pytest.raises(StoreUnavailable, match="malformed"):
            await numbers(store)


# Processes

_WRITER = """
import asyncio, sys
from pathlib import Path
from tests.runtime.notes import SCHEMA, adding, numbers
from turnwire.runtime.storage import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), SCHEMA)
    last = max(await numbers(store), default=-1)
    async def one(number):
        await store.write(adding(number, "x" * 500))
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
    while True:
        await asyncio.gather(*(one(last + step) for step in range(1, 9)))
        last += 8

asyncio.run(main())
"""


def _process(script: str, *arguments: str) -> subprocess.Popen[str]:
    environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


@pytest.mark.faults
@pytest.mark.everyday
async def test_what_was_acknowledged_survives_kill_9(path: Path):
    chance = random.Random(11)
    acknowledged: set[int] = set()
    for _ in range(6):
        process = _process(_WRITER, str(path))
        assert process.stdout is not None
        for _ in range(chance.randint(1, 60)):
            acknowledged.add(int(await asyncio.to_thread(process.stdout.readline)))
        process.kill()
        rest, _ = await asyncio.to_thread(process.communicate)
        # The last line may be half of one.
        acknowledged |= {int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")}
        async with opened(path) as store:
            there = await numbers(store)
        assert acknowledged <= set(there)
        assert list(range(len(there))) == there
    assert len(acknowledged) > 50


@pytest.mark.faults
@pytest.mark.everyday
async def test_a_second_process_is_refused_and_told_who_has_it(path: Path):
    process = _process(_WRITER, str(path))
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    with pytest.raises(StoreUnavailable, match=f"the process {process.pid} has .* open"):
        async with opened(path):
            pass
    process.kill()
    await asyncio.to_thread(process.communicate)
    async with opened(path) as store:
        await store.write(adding(-1))


_FULL = """
import asyncio, resource, sys
from pathlib import Path
from tests.runtime.notes import SCHEMA, adding, numbers
from tests.runtime.test_storage import Gate
from turnwire.errors import StoreUnavailable
from turnwire.runtime.storage import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), SCHEMA)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    written, refused = [], []
    for start in range(0, 400, 10):
        results = await asyncio.gather(
            *(store.write(adding(start + step, "x" * 2_000)) for step in range(10)), return_exceptions=True
        )
        for step, result in enumerate(results):
            if isinstance(result, StoreUnavailable):
                refused.append(start + step)
            else:
                assert result == 1, result
                written.append(start + step)
    # One that is larger than what SQLite keeps in memory meets the full disk before its commit.
    async def large(tx):
        for number in range(2_000, 2_100):
            await adding(number, "x" * 100_000)(tx)
    gate = Gate()
    held = asyncio.create_task(store.write(gate))
    await asyncio.to_thread(gate.entered.wait)
    group = [asyncio.create_task(store.write(unit)) for unit in (large, adding(3_000))]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(held, return_exceptions=True)
    both = await asyncio.gather(*group, return_exceptions=True)
    assert [StoreUnavailable, StoreUnavailable] == [type(result) for result in both], both
    assert written == await numbers(store), "what was refused is there, or what was acknowledged is not"
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await store.write(adding(1_000)) == 1
    assert [*written, 1_000] == await numbers(store)
    await store.close()
    sys.stdout.write(f"{len(written)} {len(refused)}")

asyncio.run(main())
"""


@pytest.mark.faults
@pytest.mark.everyday
async def test_a_full_disk_is_told_loses_nothing_and_ends(path: Path):
    process = _process(_FULL, str(path))
    out, err = await asyncio.to_thread(process.communicate)
    assert 0 == process.returncode, err
    written, refused = map(int, out.split()[-2:])
    assert written > 10
    assert refused > 10
    async with opened(path) as store:
        assert written + 1 == len(await numbers(store))
