"""The registry of banks: what is made is there after a restart, in its tenant, until it is taken back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.contract.calling import dump
from tests.memory.memory import EDGE, FILE, INSERTED, calling, running_memory, text, until, value
from turnwire.errors import (
    AlreadyExists,
    IdempotencyConflict,
    InvalidArgument,
    NotFound,
    NotServed,
    ProviderUnavailable,
)
from turnwire.memory.v1 import document_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.memory.conftest import WordVectors

pytestmark = pytest.mark.mesh
ALICE, BOB = "key-of-tenant-a-0000", "key-of-tenant-b-0000"


async def test_a_bank_is_there_after_a_restart_with_what_it_holds(word_vectors: WordVectors, tmp_path: Path):
    async with running_memory(word_vectors, folder=tmp_path) as memory:
        made = await memory.register("notes", "vector", metadata={"team": "blue"}, name="Notes")
        await memory.register("words", "keyword")
        for bank_id in ("notes", "words"):
            assert {"a": INSERTED} == await memory.ends(bank_id, text("a", "Cats purr."))
    assert ("vectors", "words/words", 256, 32) == (
        made.provider_id,
        made.vector.embedding_model,
        made.vector.chunk_size_tokens,
        made.vector.overlap_tokens,
    )

    async with running_memory(word_vectors, folder=tmp_path) as memory:
        again = await memory.get("notes")
        assert (1, 1) == (again.documents, again.chunks)
        assert (made.create_time, {"team": "blue"}, "Notes") == (again.create_time, dict(again.metadata), again.name)
        assert ["notes", "words"] == [bank.bank_id for bank in (await memory.list()).banks]
        for bank_id in ("notes", "words"):
            assert ["a"] == await memory.found("cats", bank_id)
            await memory.unregister(bank_id)
            with pytest.raises(NotFound):
                await memory.get(bank_id)
        # The name is free, and nothing of the old bank is in the new one.
        await memory.register("notes", "vector")
        assert [] == await memory.found("cats", "notes")
        assert (0, 0) == ((await memory.get("notes")).documents, (await memory.get("notes")).chunks)


async def test_a_deleted_bank_leaves_nothing_on_the_disk(word_vectors: WordVectors, tmp_path: Path):
    async with running_memory(word_vectors, folder=tmp_path) as memory:
        for kind in ("vector", "keyword", "keyvalue", "graph"):
            await memory.register(kind, kind)
        await memory.ends("vector", text("a", "Cats purr."))
        await memory.ends("keyword", text("a", "Cats purr.", metadata={"a": "b"}))
        await memory.ends("keyvalue", value("a", "cats", "true"))
        graph = document_pb2.GraphFragment(entities=[document_pb2.Entity(entity_id="cat")])
        graph.relations.add(from_entity_id="cat", to_entity_id="dog", type="fears")
        await memory.ends("graph", document_pb2.Document(document_id="a", graph=graph))
        full = dump(tmp_path)
        for kind in ("vector", "keyword", "keyvalue", "graph"):
            await memory.unregister(kind)
        left = dump(tmp_path)

        used = {name for name, rows in full.items() if rows and "schema_version" not in name and "text_" not in name}
        assert {"memory.sqlite3/documents", "memory.sqlite3/chunks", "memory-file.sqlite3/labels"} <= used
        assert [] == [name for name in used if left[name]]
        # The words of a bank have a table of their own.
        assert [] == [name for name in left if "keyword_" not in name and "/text_" in name and left[name]]
        assert [] == list((tmp_path / "data" / "memory-vectors").iterdir())


async def test_a_request_id_makes_a_repeat_safe(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        first = await memory.register("session-1", "vector", "r1")
        assert first == await memory.register("session-1", "vector", "r1")
        word_vectors.away = True
        assert first == await memory.register("session-1", "vector", "r1")
        word_vectors.away = False
        with pytest.raises(IdempotencyConflict):
            await memory.register("session-2", "vector", "r1")
        with pytest.raises(AlreadyExists):
            await memory.register("session-1", "vector", "r2")
        await memory.unregister("session-1")
        assert "session-1" == (await memory.register("session-1", "vector", "r1")).bank_id


async def test_what_no_provider_keeps_and_no_model_makes_is_refused(word_vectors: WordVectors):
    async with running_memory(word_vectors, FILE) as memory:
        with pytest.raises(NotServed) as kind:
            await memory.register("notes", "vector")
        assert "graph, keyvalue, keyword" == kind.value.metadata["available"]
        with pytest.raises(NotFound):
            await memory.register("notes", "keyword", provider_id="nobody")
    async with running_memory(None, EDGE, FILE) as memory:
        with pytest.raises(NotServed):
            await memory.register("notes", "vector")
        with pytest.raises(NotServed) as mismatch:
            await memory.register("notes", "vector", provider_id="file")
        assert "graph, keyvalue, keyword, vector" == mismatch.value.metadata["available"]
        assert "keyword" == (await memory.register("notes", "keyword")).WhichOneof("config")


async def test_a_model_is_named_checked_and_kept(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        async with memory.mesh.client() as client:
            await client.register_model("mine", provider_model_id="words")
            # What stands behind a name is kept: the name can be given to another model.
            assert (
                "words/words" == (await memory.register("a", "vector", embedding_model="mine")).vector.embedding_model
            )
            await client.unregister_model("mine")
        with pytest.raises(NotFound):
            await memory.register("b", "vector", embedding_model="nothing")
        await memory.ends("a", text("1", "Cats purr."))
        # The same name, and vectors of another length: nothing of it gets in or is compared.
        word_vectors.dimension = 32
        (progress,) = [each for each in await memory.insert("a", text("2", "Dogs bark.")) if each.HasField("failure")]
        assert "words/words of 64 dimensions" == progress.failure.metadata["resource_name"]
        with pytest.raises(NotServed):
            await memory.query("cats", "a")
        word_vectors.dimension = 64
        assert ["1"] == await memory.found("cats", "a")


async def test_all_that_is_wrong_is_told_at_once(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        with pytest.raises(InvalidArgument) as wrong:
            await memory.register("a b", "keyword", metadata={"": "x"}, chunk_size_tokens=3, overlap_tokens=-1)
        with pytest.raises(InvalidArgument) as kindless:
            await memory.register("a", "")
        with pytest.raises(InvalidArgument) as deep:
            await memory.register("a", "graph", depth=3)
        with pytest.raises(InvalidArgument) as query:
            await memory.query(" ", "a", "a", max_chunks=500)

    fields = [violation.field for violation in wrong.value.violations]
    assert ["bank.bank_id", "bank.metadata['']", "bank.keyword.chunk_size_tokens"] == fields
    assert ["bank.config"] == [violation.field for violation in kindless.value.violations]
    assert ["bank.graph.depth"] == [violation.field for violation in deep.value.violations]
    assert ["bank_ids[1]", "messages", "max_chunks"] == [violation.field for violation in query.value.violations]


async def test_pages_join_to_the_whole_list(word_vectors: WordVectors):
    async with running_memory(word_vectors, FILE) as memory:
        for number in range(5):
            await memory.register(f"b{number}", "keyvalue")
            await memory.ends("b0", value(f"d{number}", f"k{number}", "1"))
        banks, documents, token = [], [], ""
        while True:
            page = await memory.list(page_size=2, page_token=token)
            banks += [bank.bank_id for bank in page.banks]
            token = page.next_page_token
            if not token:
                break
        while True:
            page = await memory.documents("b0", page_size=2, page_token=token)
            documents += [document.document_id for document in page.documents]
            token = page.next_page_token
            if not token:
                break

    assert [f"b{number}" for number in range(5)] == banks
    assert [f"d{number}" for number in range(5)] == documents


async def test_nothing_crosses_tenants(word_vectors: WordVectors):
    keys = [
        {"name": name, "key": key, "tenant": f"tenant-{name}", "roles": ["user"]}
        for name, key in (("a", ALICE), ("b", BOB))
    ]
    access = {"api_keys": keys, "mesh_secret": "a secret of the mesh"}
    async with running_memory(word_vectors, access=access) as memory:
        async with calling(memory.mesh, ALICE) as alice, calling(memory.mesh, BOB) as bob:
            for bank_id, kind in (("v", "vector"), ("k", "keyword")):
                await alice.register(bank_id, kind, "r1" + bank_id)
                await alice.ends(bank_id, text("secret", "The cat is in the box."))
                for refused in (
                    bob.get(bank_id),
                    bob.query("cat", bank_id),
                    bob.documents(bank_id),
                    bob.document(bank_id, "secret"),
                    bob.delete(bank_id, "secret"),
                    bob.unregister(bank_id),
                    bob.insert(bank_id, text("a", "b")),
                ):
                    with pytest.raises(NotFound) as unseen:
                        await refused
                    assert bank_id not in unseen.value.metadata.get("available", "").split(", ")
                # The same names, and banks of his own.
                await bob.register(bank_id, kind, "r1" + bank_id)
                assert [] == await bob.found("cat", bank_id)
                assert ["secret"] == await alice.found("cat", bank_id)
            assert ["k", "v"] == [bank.bank_id for bank in (await bob.list()).banks]


async def test_a_bank_whose_provider_is_gone_can_be_listed_and_taken_back(word_vectors: WordVectors, tmp_path: Path):
    async with running_memory(word_vectors, folder=tmp_path) as memory:
        await memory.register("notes", "vector")
        await memory.ends("notes", text("a", "Cats purr."))
        (folder,) = (tmp_path / "data" / "memory-vectors").iterdir()
    async with running_memory(word_vectors, FILE, folder=tmp_path) as memory:
        assert 1 == (await memory.get("notes")).documents
        with pytest.raises(ProviderUnavailable) as gone:
            await memory.query("cats", "notes")
        assert "vectors" == gone.value.metadata["provider_id"]
        await memory.unregister("notes")
        assert folder.exists()
    async with running_memory(word_vectors, folder=tmp_path) as memory:
        # Its index goes when the provider is back.
        await memory.register("other", "vector")
        await until(lambda: asyncio.to_thread(lambda: not folder.exists()))
