"""Questions: to one bank and to many, within budgets, with banks away."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.qdrant_server import KEY, fake_qdrant
from tests.memory.memory import EDGE, FILE, Memory, running_memory, text, value
from turnwire.common.v1 import message_pb2, retrieval_pb2
from turnwire.errors import InvalidArgument, NotFound, TurnwireError
from turnwire.memory.fusion import merged, packed
from turnwire.memory.v1 import document_pb2, memory_service_pb2
from turnwire.memory.validation import check_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.memory.conftest import WordVectors

mesh = pytest.mark.mesh
ANIMALS = {
    "cat": "The cat purrs on the warm sofa.",
    "dog": "The dog barks at the postman.",
    "cow": "The cow eats grass in the meadow all day long.",
}


async def _animals(memory: Memory, bank_id: str) -> None:
    await memory.ends(
        bank_id, *(text(name, said, metadata={"legs": "4", "name": name}) for name, said in ANIMALS.items())
    )


def _chunk(said: str, score: float, tokens: int = 10) -> retrieval_pb2.RetrievedChunk:
    return retrieval_pb2.RetrievedChunk(text=said, score=score, tokens=tokens)


def _texts(chunks: Sequence[retrieval_pb2.RetrievedChunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def test_one_list_keeps_its_order_and_scores():
    only = [_chunk("a", 0.9), _chunk("b", 0.4), _chunk("a", 0.3)]
    assert [("a", pytest.approx(0.9)), ("b", pytest.approx(0.4))] == [
        (chunk.text, chunk.score) for chunk in merged([only, []])
    ]
    assert [] == merged([])


def test_lists_of_different_kinds_are_merged_by_rank_whatever_their_scores():
    vectors = [_chunk("a", 0.2), _chunk("b", 0.1), _chunk("c", 0.05)]
    words = [_chunk("c", 99.0), _chunk("d", 98.0)]
    fused = merged([vectors, words])

    # `c` stands in both; first places go before second ones, those of the earlier list first.
    assert ["c", "a", "b", "d"] == _texts(fused)
    assert [61 / 63 + 1, 1.0, 61 / 62, 61 / 62] == pytest.approx([chunk.score for chunk in fused])
    assert [0.2, 0.1, 0.05] == pytest.approx([chunk.score for chunk in vectors])


def test_a_least_score_that_is_no_number_is_refused():
    request = memory_service_pb2.QueryRequest(bank_ids=["zoo"], min_score=float("nan"))
    request.messages.add(role=message_pb2.ROLE_USER).parts.add(text="Who purrs?")

    with pytest.raises(InvalidArgument, match="min_score is no number"):
        check_query(request)

    request.min_score = -1.0
    check_query(request)


def test_a_budget_is_filled_with_what_fits():
    chunks = [_chunk("a", 3, 60), _chunk("b", 2, 50), _chunk("c", 1, 40), _chunk("d", 0, 1)]

    assert ["a", "c"] == _texts(packed(chunks, max_chunks=9, max_tokens=100))
    assert ["a", "b"] == _texts(packed(chunks, max_chunks=2, max_tokens=1000))
    assert ["d"] == _texts(packed(chunks, max_chunks=9, max_tokens=39))
    assert ["a", "c", "d"] == _texts(packed(chunks, max_chunks=9, max_tokens=101))


@mesh
@pytest.mark.parametrize("kind", ["vector", "keyword"])
async def test_a_question_finds_what_fits_with_all_that_is_known_of_it(word_vectors: WordVectors, kind: str):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", kind, chunk_size_tokens=16, overlap_tokens=1)
        markdown = "# Pets\n\nA hamster runs in a wheel.\n\n## Food\n\nHamsters eat sunflower seeds and carrots.\n"
        document = document_pb2.Document(
            document_id="pets.md", mime_type="text/markdown", text=markdown, uri="file:/pets.md", metadata={"a": "b"}
        )
        await memory.ends("notes", document)
        await _animals(memory, "notes")
        chunk = (await memory.query("hamsters food: seeds and carrots", "notes")).chunks[0]

    assert ("notes", "pets.md", "Pets", "file:/pets.md", {"a": "b"}) == (
        chunk.bank_id,
        chunk.document_id,
        chunk.title,
        chunk.uri,
        dict(chunk.metadata),
    )
    assert "Food" in chunk.heading
    assert chunk.text == markdown.encode()[chunk.start_byte : chunk.end_byte].decode()
    assert chunk.chunk_id.startswith("pets.md#")
    assert 0 < chunk.tokens <= 16
    assert 0 < chunk.score <= 1


@mesh
@pytest.mark.parametrize("kind", ["vector", "keyword"])
async def test_limits_filters_and_the_least_score_hold(word_vectors: WordVectors, kind: str):
    async with running_memory(word_vectors) as memory:
        await memory.register("notes", kind)
        await _animals(memory, "notes")
        asked = "the cat the dog the cow sofa purrs"
        whole = (await memory.query(asked, "notes")).chunks

        assert "cat" == whole[0].document_id
        assert {"cat", "dog", "cow"} == {chunk.document_id for chunk in whole}
        assert sorted((chunk.score for chunk in whole), reverse=True) == [chunk.score for chunk in whole]
        assert ["cat"] == await memory.found(asked, "notes", max_chunks=1)
        assert ["cow"] == await memory.found(asked, "notes", filters={"name": "cow"})
        assert ["cow"] == await memory.found(asked, "notes", filters={"name": "cow", "legs": "4"})
        assert [] == await memory.found(asked, "notes", filters={"name": "cow", "legs": "5"})
        assert [] == await memory.found(asked, "notes", filters={"name": "4"})
        budget = whole[0].tokens + whole[1].tokens
        assert [each.document_id for each in whole[:2]] == await memory.found(
            asked, "notes", max_tokens_in_context=budget
        )
        between = (whole[0].score + whole[1].score) / 2
        assert ["cat"] == await memory.found(asked, "notes", min_score=between)
        assert [] == await memory.found(asked, "notes", min_score=1.01)


@mesh
async def test_banks_of_every_kind_answer_together(word_vectors: WordVectors):
    async with running_memory(word_vectors) as memory:
        for kind in ("vector", "keyword", "keyvalue", "graph"):
            await memory.register(kind, kind)
        await _animals(memory, "vector")
        await memory.ends("keyword", text("same", ANIMALS["cat"]), text("other", "Sofa cushions are soft."))
        await memory.ends("keyvalue", value("price", "sofa.price", "499.5"))
        entity = document_pb2.Entity(entity_id="sofa", type="furniture", name="Sofa")
        await memory.ends(
            "graph",
            document_pb2.Document(document_id="g", graph=document_pb2.GraphFragment(entities=[entity])),
        )
        response = await memory.query("the cat on the sofa", "vector", "keyword", "keyvalue", "graph")

    assert [] == list(response.unavailable_bank_ids)
    assert {"vector", "keyvalue", "graph", "keyword"} == {chunk.bank_id for chunk in response.chunks}
    # What two kinds of bank found goes first, and is told once.
    assert ANIMALS["cat"] == response.chunks[0].text
    assert 1 == sum(chunk.text == ANIMALS["cat"] for chunk in response.chunks)
    assert all(chunk.tokens > 0 for chunk in response.chunks)


@mesh
async def test_a_bank_that_is_away_is_named_and_hides_no_other(word_vectors: WordVectors):
    async with fake_qdrant() as away:
        server = {"provider_id": "server", "provider_type": "remote::qdrant"}
        server["config"] = {"url": away.url, "api_key": KEY, "timeout_seconds": 2}  # pyright: ignore[reportArgumentType] - a mapping
        async with running_memory(word_vectors, EDGE, FILE, server) as memory:
            await memory.register("here", "vector", provider_id="vectors")
            await memory.register("there", "vector", provider_id="server")
            await memory.register("words", "keyword")
            for bank_id in ("here", "there", "words"):
                await _animals(memory, bank_id)
            away.refusal = (_unavailable(), "the server is away")
            response = await memory.query("cat", "there", "here", "words")
            assert ["there"] == list(response.unavailable_bank_ids)
            assert {"here"} >= {chunk.bank_id for chunk in response.chunks if chunk.text == ANIMALS["cat"]}
            with pytest.raises(TurnwireError) as alone:
                await memory.query("cat", "there")
            assert "server" == alone.value.metadata["provider_id"]
            away.refusal = None
            assert "cat" == (await memory.found("cat", "there"))[0]

            # Without vectors the words still answer.
            word_vectors.away = True
            response = await memory.query("cat", "there", "here", "words")
            assert ["here", "there"] == list(response.unavailable_bank_ids)
            assert ["cat"] == [chunk.document_id for chunk in response.chunks]
            with pytest.raises(NotFound):
                await memory.query("cat", "words", "nothing")


@mesh
async def test_a_bank_that_never_answers_is_left_out_before_the_callers_deadline(word_vectors: WordVectors):
    async with fake_qdrant() as slow:
        hanging = asyncio.Event()

        async def hang(request: Any, context: Any) -> Any:
            await hanging.wait()

        server: dict[str, Any] = {"provider_id": "server", "provider_type": "remote::qdrant"}
        server["config"] = {"url": slow.url, "api_key": KEY}
        async with running_memory(word_vectors, FILE, server) as memory:
            await memory.register("there", "vector")
            await memory.register("words", "keyword")
            for bank_id in ("there", "words"):
                await _animals(memory, bank_id)
            slow.query = hang
            response = await memory.query("cat", "there", "words", seconds=2.0)
            hanging.set()

    assert ["there"] == list(response.unavailable_bank_ids)
    assert ["cat"] == [chunk.document_id for chunk in response.chunks]


@mesh
async def test_values_are_found_by_key_prefix_mention_and_words(word_vectors: WordVectors):
    values = {
        "user.name": '"Ada"',
        "user.age": "36",
        "user.Address": '{"city": "London", "zip": 9007199254740993}',
        "limit": "10.0",
    }
    async with running_memory(word_vectors, FILE) as memory:
        await memory.register("facts", "keyvalue")
        await memory.ends("facts", *(value(f"d-{key}", key, told) for key, told in values.items()))

        exact = (await memory.query("user.age", "facts")).chunks
        assert ("d-user.age", "user.age: 36", 1.0) == (exact[0].document_id, exact[0].text, exact[0].score)
        assert ["d-user.Address", "d-user.age", "d-user.name"] == await memory.found("user.*", "facts")
        assert "d-limit" == (await memory.found("What is the limit?", "facts"))[0]
        assert "d-user.Address" == (await memory.found("who lives in London", "facts"))[0]
        mentioned = await memory.query("compare user.address, please", "facts", min_score=0.9)
        assert ["d-user.Address"] == [chunk.document_id for chunk in mentioned.chunks]
        # Values keep their type and every digit.
        assert 9007199254740993 == json.loads(mentioned.chunks[0].text.partition(": ")[2])["zip"]
        assert "limit: 10.0" == (await memory.query("limit", "facts")).chunks[0].text

        (end,) = [each for each in await memory.insert("facts", value("other", "limit", "1")) if each.state >= 3]
        assert "the key 'limit' is that of the document 'd-limit'" in end.failure.message
        await memory.ends("facts", value("d-limit", "limit", "11"))
        assert "limit: 11" == (await memory.query("limit", "facts")).chunks[0].text
        await memory.delete("facts", "d-limit")
        assert {"other": 3} == await memory.ends("facts", value("other", "limit", "1"))


def _graph() -> document_pb2.GraphFragment:
    entity, relation = document_pb2.Entity, document_pb2.Relation
    return document_pb2.GraphFragment(
        entities=[
            entity(entity_id="ada", type="person", name="Ada Lovelace", properties={"born": "1815"}),
            entity(entity_id="charles", type="person", name="Charles Babbage"),
            entity(entity_id="engine", type="machine", name="Analytical Engine", properties={"made of": "brass"}),
            entity(entity_id="london", type="city", name="London"),
        ],
        relations=[
            relation(from_entity_id="ada", to_entity_id="charles", type="worked with", properties={"since": "1833"}),
            relation(from_entity_id="charles", to_entity_id="engine", type="designed"),
            relation(from_entity_id="engine", to_entity_id="london", type="stood in"),
        ],
    )


@mesh
async def test_entities_are_found_by_id_name_type_and_words_with_their_neighbourhood(word_vectors: WordVectors):
    async with running_memory(word_vectors, FILE) as memory:
        for depth in (1, 2):
            await memory.register(f"depth{depth}", "graph", depth=depth)
            await memory.ends(f"depth{depth}", document_pb2.Document(document_id="g", graph=_graph()))
        near = (await memory.query("Ada Lovelace", "depth1")).chunks[0]
        far = (await memory.query("ada", "depth2")).chunks[0]
        people = (await memory.query("Which persons do you know?", "depth1")).chunks
        brass = (await memory.query("what is made of brass", "depth1")).chunks[0]
        mentioned = (await memory.query("Did charles babbage live in Rome?", "depth1")).chunks[0]
        filtered = (await memory.query("ada", "depth1", filters={"a": "b"})).chunks

        # Another document tells more of the same entity, and takes it along when it goes.
        more = document_pb2.GraphFragment(entities=[document_pb2.Entity(entity_id="ada", properties={"died": "1852"})])
        await memory.ends("depth1", document_pb2.Document(document_id="more", graph=more))
        both = (await memory.query("ada", "depth1")).chunks[0].text
        await memory.delete("depth1", "more")
        again = (await memory.query("ada", "depth1")).chunks[0].text

    assert "Ada Lovelace (person, id ada)\nborn: 1815\nAda Lovelace -[worked with]-> Charles Babbage (since: 1833)" == (
        near.text
    )
    assert 1.0 == near.score
    assert f"{near.text}\nCharles Babbage -[designed]-> Analytical Engine" == far.text
    assert ["Ada Lovelace", "Charles Babbage"] == [chunk.text.partition(" (")[0] for chunk in people]
    assert brass.text.startswith("Analytical Engine")
    assert mentioned.text.startswith("Charles Babbage")
    assert [] == list(filtered)
    assert "born: 1815\ndied: 1852" in both
    assert near.text == again


def _unavailable() -> Any:
    import grpc

    return grpc.StatusCode.UNAVAILABLE
