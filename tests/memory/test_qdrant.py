"""Vector banks on the two forms of Qdrant: embedded, and a server over gRPC (a fake of it, by the maker's protos)."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
import qdrant_edge

from tests.fakes.qdrant_server import KEY, FakeQdrant, fake_qdrant, points
from tests.memory.conftest import vector
from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import InvalidArgument, ProviderError, ProviderUnavailable
from turnwire.memory.banks import PROVIDERS
from turnwire.memory.banks.port import Entry, Place, Question, labels
from turnwire.memory.banks.qdrant_edge import QdrantEdgeProvider
from turnwire.runtime.settings import ProviderSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

HOME, OTHER = Place("bank_home", "vector", 64), Place("bank_other", "vector", 64)


def _entry(revision: str, *texts: str, **metadata: str) -> Entry:
    return Entry(revision, "document", labels(metadata), texts, [vector(text) for text in texts])


def _question(text: str, **fields: Any) -> Question:
    return Question(text, fields.pop("limit", 10), vector(text), **fields)


@asynccontextmanager
async def _edge(folder: Path, **config: Any) -> AsyncGenerator[Any]:
    async with _built("inline::qdrant-edge", folder, config) as provider:
        yield provider


@asynccontextmanager
async def _built(provider_type: str, folder: Path, config: dict[str, Any]) -> AsyncGenerator[Any]:
    provider = PROVIDERS.build(ProviderSettings(provider_id="v", provider_type=provider_type, config=config))
    await provider.start(folder)
    try:
        yield provider
    finally:
        await provider.close()


@asynccontextmanager
async def _server(fake: FakeQdrant, folder: Path) -> AsyncGenerator[Any]:
    config = {"url": fake.url, "api_key": KEY, "timeout_seconds": 5}
    async with _built("remote::qdrant", folder, config) as provider:
        yield provider


@pytest.fixture(params=["edge", "server"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@asynccontextmanager
async def _provider(kind: str, folder: Path) -> AsyncGenerator[Any]:
    if kind == "edge":
        async with _edge(folder) as provider:
            yield provider
    else:
        async with fake_qdrant() as fake, _server(fake, folder) as provider:
            yield provider


async def test_both_keep_find_hide_filter_and_remove_entries_of_a_bank_alike(kind: str, tmp_path: Path):
    async with _provider(kind, tmp_path) as provider:
        assert [] == await provider.search(HOME, _question("cats"))
        await provider.remove(HOME, ["r1"])
        for place in (HOME, OTHER):
            await provider.create(place)
            await provider.create(place)
            await provider.put(place, _entry("r1", "cats purr", "dogs bark", color="red"))
        await provider.put(HOME, _entry("r2", "cats sleep all day", color="red", size="s"))

        best, *_ = await provider.search(HOME, _question("cats purr"))
        assert ("r1", 0, pytest.approx(1.0, abs=1e-3)) == (best.revision, best.ordinal, best.score)
        dogs = (await provider.search(HOME, _question("dogs bark", limit=1)))[0]
        assert ("r1", 1) == (dogs.revision, dogs.ordinal)
        assert 3 == len(await provider.search(HOME, _question("cats")))
        assert 2 == len(await provider.search(OTHER, _question("cats")))

        async def seen(**fields: Any) -> set[str]:
            return {hit.revision for hit in await provider.search(HOME, _question("cats", **fields))}

        assert {"r2"} == await seen(hidden=("r1",))
        assert set() == await seen(hidden=("r1", "r2"))
        assert {"r1", "r2"} == await seen(labels=labels({"color": "red"}))
        assert {"r2"} == await seen(labels=labels({"color": "red", "size": "s"}))
        assert set() == await seen(labels=labels({"red": "color"}))

        # The same entry again adds nothing.
        await provider.put(HOME, _entry("r2", "cats sleep all day", color="red", size="s"))
        assert 3 == len(await provider.search(HOME, _question("cats")))
        await provider.remove(HOME, ["r1", "never put"])
        assert {"r2"} == await seen()
        assert 2 == len(await provider.search(OTHER, _question("cats")))
        await provider.drop(HOME)
        await provider.drop(HOME)
        assert set() == await seen()
        assert 2 == len(await provider.search(OTHER, _question("cats")))
        assert inspect_service_pb2.Provider.STATE_READY == provider.state()[0]


async def test_many_chunks_are_put_in_several_writes(kind: str, tmp_path: Path):
    many = [f"word{number} text" for number in range(1200)]
    async with _provider(kind, tmp_path) as provider:
        await provider.put(HOME, _entry("r1", *many))
        (hit,) = await provider.search(HOME, _question("word1101 text", limit=1))
        found = await provider.search(HOME, _question("text", limit=2000))

    assert 1.0 == pytest.approx(hit.score, abs=1e-3)
    assert set(range(1200)) == {each.ordinal for each in found}


async def test_the_server_has_few_collections_and_indexes_for_what_is_filtered(tmp_path: Path):
    async with fake_qdrant() as fake, _server(fake, tmp_path) as provider:
        await provider.put(HOME, _entry("r1", "cats"))
        await provider.put(OTHER, _entry("r1", "cats"))
        (name,) = fake.collections
        assert "turnwire-64" == name
        assert {"bank", "revision", "labels"} == set(fake.collections[name].indexed)
        assert fake.collections[name].indexed["bank"].field_index_params.keyword_index_params.is_tenant
        assert 1 == fake.calls.count("Create")
        # Another replica finds it made.
        async with _server(fake, tmp_path) as second:
            assert 1 == len(await second.search(HOME, _question("cats")))
        assert 1 == fake.calls.count("Create")


async def test_a_server_that_is_away_or_refuses_is_told_and_found_again(tmp_path: Path):
    async with fake_qdrant() as fake, _server(fake, tmp_path) as provider:
        await provider.put(HOME, _entry("r1", "cats"))
        fake.status = points.UpdateStatus.Acknowledged
        with pytest.raises(ProviderUnavailable, match="not applied"):
            await provider.put(HOME, _entry("r2", "dogs"))
        fake.status = points.UpdateStatus.Completed
        fake.refusal = (grpc.StatusCode.INTERNAL, "Service internal error: disk on fire")
        with pytest.raises(ProviderError, match="disk on fire") as refused:
            await provider.search(HOME, _question("cats"))
        assert not isinstance(refused.value, ProviderUnavailable)
        fake.refusal = None
        # Somebody removed the collection behind us: after one failure it is made again.
        await provider.search(HOME, _question("cats"))
        fake.collections.clear()
        with pytest.raises(ProviderError):
            await provider.search(HOME, _question("cats"))
        await provider.put(HOME, _entry("r1", "cats"))
        assert 1 == len(await provider.search(HOME, _question("cats")))

        wrong = {"url": fake.url, "api_key": "wrong"}
        async with _built("remote::qdrant", tmp_path, wrong) as stranger:
            with pytest.raises(ProviderError, match="API key") as unauthenticated:
                await stranger.create(HOME)
            assert "wrong" not in str(unauthenticated.value)

    async with _built("remote::qdrant", tmp_path, {"url": "http://127.0.0.1:9", "timeout_seconds": 1}) as nowhere:
        with pytest.raises(ProviderUnavailable, match=r"127\.0\.0\.1:9"):
            await nowhere.create(HOME)
        assert inspect_service_pb2.Provider.STATE_UNAVAILABLE == nowhere.state()[0]
        assert "127.0.0.1:9" in nowhere.state()[1]


def test_a_configuration_that_cannot_be_is_refused():
    for config in (
        {},
        {"url": "qdrant:6334"},
        {"url": "http://q", "collection_prefix": "a/b"},
        {"url": "http://q", "x": 1},
    ):
        entry = ProviderSettings(provider_id="v", provider_type="remote::qdrant", config=config)
        with pytest.raises(InvalidArgument):
            PROVIDERS.build(entry)


async def test_an_index_is_built_in_the_background_and_nothing_is_lost_meanwhile(tmp_path: Path):
    """HNSW is approximate: what is asked for is the very text."""
    async with _edge(tmp_path, index_after=2000) as provider:
        folder = tmp_path / "memory-v"
        await provider.put(HOME, _entry("r0", *(f"word{number} thing{number % 7}" for number in range(2000))))
        written, gone = 0, False
        deadline = time.monotonic() + 40
        while not (folder / "bank_home.2").exists():
            assert time.monotonic() < deadline
            # Written, and removed, while the copy is being indexed.
            written += 1
            await provider.put(HOME, _entry(f"new{written}", f"fresh{written} piece"))
            if (folder / "bank_home.copy").exists() and not gone:
                await provider.remove(HOME, ["new1"])
                gone = True
            (hit,) = await provider.search(HOME, _question("word77 thing0", limit=1))
            assert 1.0 == pytest.approx(hit.score, abs=1e-3)
        assert gone
        assert ["bank_home.2"] == sorted(path.name for path in folder.iterdir())
        everything = await provider.search(HOME, _question("word", limit=5000))
        revisions = {hit.revision for hit in everything}

    # Built it was: the engine says how many points are in its index.
    shard = qdrant_edge.EdgeShard.load(str(folder / "bank_home.2"))
    indexed = shard.info().indexed_vectors_count
    shard.close()
    assert indexed >= 2000
    assert {"r0", *(f"new{number}" for number in range(2, written + 1))} == revisions
    assert 2000 + written - 1 == len(everything)
    async with _edge(tmp_path) as provider:
        assert len(everything) == len(await provider.search(HOME, _question("word", limit=5000)))


async def test_what_a_crash_left_of_the_building_of_an_index_is_removed(tmp_path: Path):
    folder = tmp_path / "memory-v"
    async with _edge(tmp_path) as provider:
        await provider.put(HOME, _entry("r1", "cats"))
    for name in ("bank_home.copy", "bank_home.making", "bank_away.making"):
        (folder / name).mkdir()
        (folder / name / "rubbish").write_text("half")
    async with _edge(tmp_path) as provider:
        assert 1 == len(await provider.search(HOME, _question("cats")))
        assert ["bank_home.1"] == sorted(path.name for path in folder.iterdir())
    # Of two numbers the higher one is the bank.
    (folder / "bank_home.1").rename(folder / "bank_home.2")
    (folder / "bank_home.1").mkdir()
    async with _edge(tmp_path) as provider:
        assert 1 == len(await provider.search(HOME, _question("cats")))
        assert ["bank_home.2"] == sorted(path.name for path in folder.iterdir())


async def test_more_banks_than_are_held_open_all_answer(tmp_path: Path):
    async with _edge(tmp_path) as provider:
        places = [Place(f"bank_{number}", "vector", 64) for number in range(40)]
        # Those of meshes that other tests have stopped may still be ending: this one has this test's folder.
        (engine,) = [each for each in psutil.Process().children() if str(tmp_path / "memory-v") in each.cmdline()]
        most = 0
        for place in places:
            await provider.put(place, _entry(place.uid, "cats"))
            opened = {
                part for file in engine.memory_maps() for part in Path(file.path).parts if part.startswith("bank_")
            }
            most = max(most, len(opened))
        assert 1 < most <= 33
        for place in places:
            assert [place.uid] == [hit.revision for hit in await provider.search(place, _question("cats"))]


async def test_a_failure_of_the_engine_reaches_its_caller_and_harms_no_other(tmp_path: Path):
    async with _edge(tmp_path) as provider:
        await provider.put(HOME, _entry("r1", "cats"))
        with pytest.raises(ProviderError):
            await provider.search(HOME, Question("cats", 10, [1.0] * 3))
        assert 1 == len(await provider.search(HOME, _question("cats")))
    with pytest.raises(ProviderUnavailable):
        await provider.search(HOME, _question("cats"))


async def test_a_full_disk_is_no_defect_of_the_engine_but_something_that_passes():
    provider = QdrantEdgeProvider("vectors", QdrantEdgeProvider.Config())
    loop = asyncio.get_running_loop()
    full, broken = loop.create_future(), loop.create_future()
    provider._settle(full, {"error": "Exception: Failed to flush: No space left on device (os error 28)"})
    provider._settle(broken, {"error": "Exception: no such shard"})

    with pytest.raises(ProviderUnavailable, match="the disk of its banks is full"):
        await full
    with pytest.raises(ProviderError, match="no such shard"):
        await broken
