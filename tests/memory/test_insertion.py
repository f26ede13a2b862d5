"""Documents into banks: each whole or not at all, again and again the same, one bad one stopping no other."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from tests.memory.conftest import DIMENSION, vector
from tests.memory.memory import (
    EDGE,
    EMBEDDING,
    FAILED,
    FILE,
    INSERTED,
    PARSING,
    UNCHANGED,
    Memory,
    calling,
    running_memory,
    text,
    until,
    value,
)
from turnwire.errors import IdempotencyConflict, InvalidArgument, NotFound, ProviderUnavailable, TurnwireError
from turnwire.memory.banks import PROVIDERS
from turnwire.memory.banks.port import Place, Question
from turnwire.memory.store import documents as stored_documents
from turnwire.memory.v1 import document_pb2
from turnwire.runtime.settings import ProviderSettings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.memory.conftest import WordVectors

pytestmark = pytest.mark.mesh
LONG = "\n\n".join(f"Paragraph {number} tells of word{number} and of nothing else at all." for number in range(60))


async def test_progress_tells_parsing_embedding_with_counts_and_the_end(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", "vector", chunk_size_tokens=32, overlap_tokens=4)
        told = await memory.insert("notes", text("a", LONG, title="A list", metadata={"team": "blue"}, uri="x:/a"))
        stored = await memory.document("notes", "a")
        counted = await memory.get("notes")

    assert PARSING == told[0].state
    assert INSERTED == told[-1].state
    steps = [(each.chunks_done, each.chunks_total) for each in told if each.state == EMBEDDING]
    total = told[-1].chunks_total
    assert total > 20
    assert (0, total) == steps[0]
    assert (total, total) == steps[-1]
    assert len(steps) > 2
    assert steps == sorted(steps)
    assert ("A list", "text/plain", "x:/a", total, {"team": "blue"}) == (
        stored.title,
        stored.mime_type,
        stored.uri,
        stored.chunks,
        dict(stored.metadata),
    )
    assert hashlib.sha256(LONG.encode()).hexdigest() == stored.content_sha256
    assert stored.insert_time.seconds > 0
    assert (1, total) == (counted.documents, counted.chunks)


@pytest.mark.parametrize("kind", ["vector", "keyword"])
async def test_the_same_again_is_unchanged_and_costs_nothing_and_other_content_takes_its_place(
    word_vectors: WordVectors, kind: str
):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", kind)
        first = text("a", "Cats purr.")
        assert {"a": INSERTED} == await memory.ends("notes", first)
        embedded = len(word_vectors.texts)
        assert {"a": UNCHANGED} == await memory.ends("notes", first)
        assert embedded == len(word_vectors.texts)
        assert {"a": INSERTED} == await memory.ends("notes", text("a", "Dogs bark."))
        (chunk,) = (await memory.query("cats dogs purr bark", "notes")).chunks
        assert ("a", "Dogs bark.") == (chunk.document_id, chunk.text)
        # Labels are part of what a document is.
        assert {"a": INSERTED} == await memory.ends("notes", text("a", "Dogs bark.", metadata={"k": "v"}))
        assert ["a"] == await memory.found("dogs", "notes", filters={"k": "v"})
        assert 1 == (await memory.get("notes")).chunks


async def test_one_bad_document_stops_no_other(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", "vector")
        program = document_pb2.Document(document_id="program", data=b"\x7fELF" + bytes(200), title="a.pdf")
        told = await memory.insert(
            "notes",
            text("good 1", "Cats purr."),
            program,
            value("value", "k", "1"),
            document_pb2.Document(document_id="artifact", artifact_id="art_nowhere"),
            document_pb2.Document(document_id="inner", url="http://127.0.0.1:9/secret"),
            text("good 2", "Dogs bark."),
        )
        ends = {each.document_id: each for each in told if each.state >= INSERTED}
        found = await memory.found("cats dogs", "notes")

    assert {"good 1", "good 2"} == {name for name, end in ends.items() if end.state == INSERTED}
    assert {"good 1", "good 2"} == set(found)
    reasons = {name: end.failure.reason for name, end in ends.items() if end.state == FAILED}
    assert {"program", "value", "artifact", "inner"} == set(reasons)
    refused = {ends[name].failure.reason for name in ("program", "value", "inner")}
    assert {"ERROR_REASON_DOCUMENT_REFUSED"} == {_name(reason) for reason in refused}
    assert "ERROR_REASON_SERVICE_UNAVAILABLE" == _name(reasons["artifact"])
    assert ends["artifact"].failure.retryable
    assert "tool_executor" in ends["artifact"].failure.message


async def test_a_request_is_safe_to_repeat_also_when_the_document_has_changed_since(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", "vector")
        old = text("a", "Cats purr.")
        assert {"a": INSERTED} == await memory.ends("notes", old, request_id="r1")
        assert {"a": INSERTED} == await memory.ends("notes", text("a", "Dogs bark."), request_id="r2")
        assert {"a": INSERTED} == await memory.ends("notes", old, request_id="r1")
        assert "Dogs bark." == (await memory.query("dogs", "notes")).chunks[0].text
        with pytest.raises(IdempotencyConflict):
            await memory.insert("notes", text("b", "Cows moo."), request_id="r1")
        # What failed for a reason that passes is tried again.
        word_vectors.away = True
        assert {"c": FAILED} == await memory.ends("notes", text("c", "Cows moo."), request_id="r3")
        word_vectors.away = False
        assert {"c": INSERTED} == await memory.ends("notes", text("c", "Cows moo."), request_id="r3")


async def test_what_is_wrong_with_documents_is_told_at_once(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", "keyvalue")
        with pytest.raises(InvalidArgument) as wrong:
            await memory.insert(
                "notes",
                document_pb2.Document(document_id="a"),
                text("a", "x" * (1024 * 1024 + 1)),
                value("c", "", "NaN"),
                value("d", "k", '{"a": 1'),
            )
        with pytest.raises(NotFound):
            await memory.insert("nothing", text("a", "b"))
        assert 0 == (await memory.get("notes")).documents

    assert [
        "documents[0]",
        "documents[1].document_id",
        "documents[1].text",
        "documents[2].key_value.key",
        "documents[2].key_value.value_json",
        "documents[3].key_value.value_json",
    ] == [violation.field for violation in wrong.value.violations]


async def test_a_deleted_document_is_found_no_more(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        for kind in ("vector", "keyword"):
            await memory.register(kind, kind)
            await memory.ends(kind, text("a", "Cats purr."), text("b", "Cats sleep."))
            await memory.delete(kind, "a")
            assert ["b"] == await memory.found("cats", kind)
            with pytest.raises(NotFound):
                await memory.document(kind, "a")
            with pytest.raises(NotFound):
                await memory.delete(kind, "a")
            assert 1 == (await memory.get(kind)).documents


async def _change(memory: Memory, bank_id: str, rounds: int) -> None:
    for number in range(1, rounds):
        assert {"a": INSERTED} == await memory.ends(bank_id, _version(number))


def _version(number: int) -> document_pb2.Document:
    """Every version has the word apple in each of its chunks."""
    return text("a", "\n\n".join(f"apple version{number} part{part} " + "filler " * 20 for part in range(6)))


@pytest.mark.parametrize("kind", ["vector", "keyword"])
async def test_whoever_asks_while_a_document_changes_sees_one_version_and_never_none(
    word_vectors: WordVectors, kind: str
):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", kind, chunk_size_tokens=32, overlap_tokens=1)
        await memory.ends("notes", _version(0))
        changing = asyncio.create_task(_change(memory, "notes", 12))
        seen: set[str] = set()
        asked = 0
        while not changing.done():
            chunks = (await memory.query("apple filler", "notes", max_chunks=200, max_tokens_in_context=10_000)).chunks
            versions = {word for chunk in chunks for word in chunk.text.split() if word.startswith("version")}
            assert 1 == len(versions), f"{len(chunks)} chunks of {versions}"
            assert 6 <= len(chunks)
            seen |= versions
            asked += 1
        await changing

    assert len(seen) > 1, f"nothing changed during {asked} questions"


async def _documents_in(memory: Memory, bank_id: str) -> dict[str, set[str]]:
    """Returns the chunks of each document that questions find, and checks them against the registry."""
    found: dict[str, set[str]] = {}
    chunks = (await memory.query("apple", bank_id, max_chunks=200, max_tokens_in_context=100_000)).chunks
    for chunk in chunks:
        found.setdefault(chunk.document_id, set()).add(chunk.chunk_id)
    listed = {each.document_id: each.chunks for each in (await memory.documents(bank_id, page_size=200)).documents}
    assert listed == {name: len(chunk_ids) for name, chunk_ids in found.items()}
    return found


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["vector", pytest.param("keyword", marks=pytest.mark.everyday)])
async def test_killed_while_it_inserts_it_has_each_document_whole_or_not(
    word_vectors: WordVectors, kind: str, tmp_path: Path
):
    async with running_memory(word_vectors, folder=tmp_path, topology="processes") as memory:
        mesh = memory.mesh
        await memory.register("notes", kind, chunk_size_tokens=32, overlap_tokens=1)
        acknowledged: set[str] = set()
        for round_number in range(4):
            names = [f"{round_number}-{number}" for number in range(6)]
            documents = [
                text(name, "\n\n".join(f"apple {name} part{part}: {name} says {part}." for part in range(5)))
                for name in names
            ]
            acknowledged |= await _inserted_until_killed(memory, documents, kill_after=1 + 2 * round_number)
            await mesh.start("memory")
            async with calling(mesh) as after:
                found = await _documents_in(after, "notes")
                assert acknowledged <= set(found)
                # It goes on where it was, and what is there is not made again.
                ends = await after.ends("notes", *documents)
                assert {UNCHANGED} >= {ends[name] for name in names if name in found}
                assert {INSERTED} >= {ends[name] for name in names if name not in found}
                assert set(names) <= set(await _documents_in(after, "notes"))
            acknowledged |= set(names)


@pytest.mark.parametrize("kind", ["vector", "keyword"])
async def test_what_a_crash_leaves_between_index_and_store_is_never_seen_and_removed_later(
    word_vectors: WordVectors, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    provider_id = {"vector": "vectors", "keyword": "file"}[kind]

    async def dies(*_: object) -> None:
        raise RuntimeError("the power went")

    async with running_memory(word_vectors, folder=tmp_path) as memory:
        await memory.register("notes", kind)
        await memory.ends("notes", text("a", "Cats purr."))
        with monkeypatch.context() as patch:
            patch.setattr(stored_documents, "show", dies)
            assert {"a": FAILED} == await memory.ends("notes", text("a", "Cats bark."))
        assert 1 == len(_hidden(tmp_path))
        (chunk,) = (await memory.query("cats", "notes")).chunks
        assert "Cats purr." == chunk.text
    async with running_memory(word_vectors, folder=tmp_path) as memory:
        await until(lambda: asyncio.to_thread(lambda: not _hidden(tmp_path)))
        assert ["a"] == await memory.found("cats", "notes")
    # The index itself holds the one version.
    entry = ProviderSettings(
        provider_id=provider_id, provider_type={"vector": EDGE, "keyword": FILE}[kind]["provider_type"]
    )
    provider = PROVIDERS.build(entry)
    await provider.start(tmp_path / "data")
    try:
        place = Place(_uid(tmp_path), "vector" if kind == "vector" else "keyword", DIMENSION)
        hits = await provider.search(place, Question("cats", 10, vector("cats")))
    finally:
        await provider.close()
    assert 1 == len(hits)


async def test_what_an_index_refuses_is_cleared_away_at_once(word_vectors: WordVectors, tmp_path: Path):
    async with running_memory(word_vectors, FILE, folder=tmp_path) as memory:
        await memory.register("facts", "keyvalue")
        await memory.ends("facts", value("a", "key", "1"))
        assert {"b": FAILED} == await memory.ends("facts", value("b", "key", "2"))
        assert [] == _hidden(tmp_path)
        assert ["a"] == await memory.found("key", "facts")


def _hidden(folder: Path) -> list[Any]:
    with sqlite3.connect(f"file:{folder}/data/memory.sqlite3?mode=ro", uri=True) as connection:
        return connection.execute("SELECT * FROM hidden").fetchall()


def _uid(folder: Path) -> str:
    with sqlite3.connect(f"file:{folder}/data/memory.sqlite3?mode=ro", uri=True) as connection:
        return connection.execute("SELECT uid FROM banks").fetchone()[0]


async def _inserted_until_killed(memory: Memory, documents: list[Any], *, kill_after: int) -> set[str]:
    """Inserts, kills the service after so many steps of progress, and returns what was acknowledged."""
    acknowledged: set[str] = set()
    steps = 0
    async with calling(memory.mesh) as calls:
        try:
            async for progress in calls.inserting("notes", *documents):
                steps += 1
                if progress.state == INSERTED:
                    acknowledged.add(progress.document_id)
                if steps == kill_after:
                    await memory.mesh.kill("memory")
        except TurnwireError:
            pass
        else:
            raise AssertionError("the stream was not cut")
    return acknowledged


@pytest.mark.faults
@pytest.mark.everyday
async def test_the_process_of_the_engine_is_replaced_when_it_dies(word_vectors: WordVectors, tmp_path: Path):
    import psutil

    def engines() -> list[psutil.Process]:
        return [each for each in psutil.Process().children() if "turnwire.memory.edge.worker" in each.cmdline()]

    # Those of meshes that other tests have just stopped may still be ending.
    earlier = {each.pid for each in engines()}
    async with running_memory(word_vectors, EDGE, folder=tmp_path) as memory:
        await memory.register("notes", "vector")
        await memory.ends("notes", text("a", "Cats purr."))
        (engine,) = [each for each in engines() if each.pid not in earlier]
        engine.send_signal(signal.SIGKILL)
        engine.wait(10)

        async def answers() -> bool:
            try:
                return ["a"] == await memory.found("cats", "notes")
            except ProviderUnavailable:
                return False  # a question that came at that moment is refused with a reason that passes

        await until(answers)
        assert {"b": INSERTED} == await memory.ends("notes", text("b", "Dogs bark."))


def _name(reason: int) -> str:
    from turnwire.common.v1 import error_pb2

    return error_pb2.ErrorReason.Name(reason)  # pyright: ignore[reportArgumentType] - a number from the wire
