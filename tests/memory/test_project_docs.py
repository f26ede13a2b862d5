"""The bank `turnwire-docs`: there for every tenant, to be read only, filled when something makes vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.memory.memory import FILE, Memory, calling, running_memory, text, until
from turnwire.errors import AlreadyExists, NotFound, ResourceInUse
from turnwire.memory.project_docs import folder_of

if TYPE_CHECKING:
    from tests.memory.conftest import WordVectors

mesh = pytest.mark.mesh
BANK = "turnwire-docs"


def _write(folder: Path, **pages: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, page in pages.items():
        path = folder / f"{name.replace('__', '/')}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(page)
    return folder


async def _filled(memory: Memory, *document_ids: str) -> None:
    """Waits until the bank holds these documents and no others."""

    async def holds() -> bool:
        return set(document_ids) == {each.document_id for each in (await memory.documents(BANK)).documents}

    await until(holds)


@mesh
async def test_it_is_filled_at_the_start_and_a_warm_start_embeds_nothing(word_vectors: WordVectors, tmp_path: Path):
    pages = _write(tmp_path / "pages", concepts="# Concepts\n\nA turn has steps.\n", deep__tools="# Tools\n\nCalls.\n")
    async with running_memory(word_vectors, folder=tmp_path, docs_dir=str(pages)) as memory:
        await _filled(memory, "concepts.md", "deep/tools.md")
        bank = await memory.get(BANK)
        (chunk, *_) = (await memory.query("steps of a turn", BANK)).chunks
        assert ("concepts.md", "Concepts", BANK) == (chunk.document_id, chunk.title, chunk.bank_id)
        assert bank.built_in
        assert "words/words" == bank.vector.embedding_model
    word_vectors.texts.clear()
    _write(pages, zebra="# Zebra\n\nIt is striped.\n")
    async with running_memory(word_vectors, folder=tmp_path, docs_dir=str(pages)) as memory:
        # The new page comes last, and is all that vectors are made for.
        await _filled(memory, "concepts.md", "deep/tools.md", "zebra.md")
        assert bank.create_time == (await memory.get(BANK)).create_time
    assert {"Zebra"} == {each.partition("\n")[0] for each in word_vectors.texts}

    # A page that changed, one that came and one that went.
    _write(pages, concepts="# Concepts\n\nA session has turns.\n", new="# New\n\nFresh.\n")
    (pages / "deep" / "tools.md").unlink()
    async with running_memory(word_vectors, folder=tmp_path, docs_dir=str(pages)) as memory:
        await _filled(memory, "concepts.md", "new.md", "zebra.md")
        assert "session" in (await memory.query("concepts", BANK)).chunks[0].text


@mesh
async def test_what_a_terminal_showed_is_left_out(word_vectors: WordVectors, tmp_path: Path):
    page = "# Start\n\nAsk it.\n\n```console\n$ ask factorial\n355687428096000\n```\n\n```sh\nturnwire chat\n```\n"
    pages = _write(tmp_path / "pages", start=page)
    async with running_memory(word_vectors, docs_dir=str(pages)) as memory:
        await _filled(memory, "start.md")
        (chunk,) = (await memory.query("factorial", BANK)).chunks
    assert "355687428096000" not in chunk.text
    assert "Ask it." in chunk.text
    assert "turnwire chat" in chunk.text


@mesh
async def test_it_answers_before_it_is_filled_and_fills_when_its_model_is_there(
    word_vectors: WordVectors, tmp_path: Path
):
    pages = _write(tmp_path / "pages", concepts="# Concepts\n\nA turn has steps.\n")
    word_vectors.away = True
    async with running_memory(word_vectors, docs_dir=str(pages)) as memory:
        assert BANK in [bank.bank_id for bank in (await memory.list()).banks]
        await memory.register("words", "keyword")
        response = await memory.query("steps", BANK, "words")
        assert [] == list(response.chunks)
        word_vectors.away = False
        await _filled(memory, "concepts.md")
        assert ["concepts.md"] == await memory.found("steps", BANK)


@mesh
async def test_it_stands_in_every_tenant_and_can_only_be_read(word_vectors: WordVectors, tmp_path: Path):
    keys: list[dict[str, Any]] = [
        {"name": name, "key": f"key-of-tenant-{name}-0000", "tenant": f"tenant-{name}", "roles": ["admin"]}
        for name in ("a", "b")
    ]
    access = {"api_keys": keys, "mesh_secret": "a secret of the mesh"}
    pages = _write(tmp_path / "pages", concepts="# Concepts\n\nA turn has steps.\n")
    async with running_memory(word_vectors, access=access, docs_dir=str(pages)) as memory:
        for key in keys:
            async with calling(memory.mesh, key["key"]) as caller:
                await _filled(caller, "concepts.md")
                assert [BANK] == [bank.bank_id for bank in (await caller.list()).banks]
                assert ["concepts.md"] == await caller.found("steps", BANK)
                for refused in (
                    lambda caller=caller: caller.insert(BANK, text("a", "b")),
                    lambda caller=caller: caller.delete(BANK, "concepts.md"),
                    lambda caller=caller: caller.unregister(BANK),
                ):
                    with pytest.raises(ResourceInUse):
                        await refused()
                with pytest.raises(AlreadyExists):
                    await caller.register(BANK, "keyword")


@mesh
async def test_without_documents_or_vectors_there_is_no_such_bank(word_vectors: WordVectors, tmp_path: Path):
    async with running_memory(word_vectors) as memory:
        with pytest.raises(NotFound):
            await memory.query("steps", BANK)
    async with running_memory(word_vectors, FILE, docs_dir=str(_write(tmp_path / "pages", a="# A\n"))) as memory:
        assert [] == list((await memory.list()).banks)


@mesh
async def test_vectors_of_a_model_that_is_gone_are_made_anew(word_vectors: WordVectors, tmp_path: Path):
    pages = _write(tmp_path / "pages", concepts="# Concepts\n\nA turn has steps.\n")
    async with running_memory(word_vectors, folder=tmp_path, docs_dir=str(pages)) as memory:
        await _filled(memory, "concepts.md")
    provider = word_vectors.provider
    provider["provider_id"] = "others"
    providers = {
        "inference": [provider],
        "memory": [{"provider_id": "vectors", "provider_type": "inline::qdrant-edge"}],
    }
    async with running_memory(word_vectors, folder=tmp_path, docs_dir=str(pages), providers=providers) as memory:

        async def settled() -> bool:
            return "others/words" == (await memory.get(BANK)).vector.embedding_model

        await until(settled)
        await _filled(memory, "concepts.md")
        assert ["concepts.md"] == await memory.found("steps", BANK)


def test_the_documents_of_this_checkout_are_found():
    assert Path(__file__).resolve().parents[2] == folder_of("auto")
    assert folder_of("") is None
    assert Path("/x") == folder_of("/x")
