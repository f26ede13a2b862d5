"""The service with the embedding model that Turnwire comes with: documents are found by what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.memory.memory import Memory, running_memory, text, until
from turnwire import weights

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [pytest.mark.mesh, pytest.mark.model]
MINILM = {"provider_id": "embeddings", "provider_type": "inline::minilm"}
PROVIDERS = {
    "inference": [MINILM],
    "memory": [
        {"provider_id": "vectors", "provider_type": "inline::qdrant-edge"},
        {"provider_id": "file", "provider_type": "inline::sqlite"},
    ],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory() -> AsyncGenerator[Memory]:
    weights.locate("minilm")
    async with running_memory(docs_dir="auto", providers=PROVIDERS) as running:
        yield running


@pytest.mark.everyday
@pytest.mark.asyncio(loop_scope="module")
async def test_a_question_in_other_words_finds_the_document(memory: Memory):
    await memory.register("notes", "vector")
    await memory.ends(
        "notes",
        text("vet", "Take a sick kitten to an animal doctor without delay."),
        text("oil", "The engine needs its lubricant replaced every year."),
        text("tax", "Income is to be declared to the authorities in spring."),
    )
    bank = await memory.get("notes")

    assert "embeddings/all-minilm-l6-v2" == bank.vector.embedding_model
    assert "vet" == (await memory.found("my cat is ill, what now?", "notes"))[0]
    assert "oil" == (await memory.found("how often do I change the grease of my motor?", "notes"))[0]
    (best,) = (await memory.query("my cat is ill, what now?", "notes", max_chunks=1)).chunks
    assert 0.2 < best.score < 1


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("question", "document_id"),
    [
        ("How does a client go on reading a turn after its connection was cut?", {"concepts.md", "client.md"}),
        ("What does the error reason SESSION_BUSY mean?", {"errors.md"}),
        ("On which operating systems and Python versions does Turnwire run?", {"platforms.md"}),
        ("How do I test my agent without a real model?", {"testing.md"}),
        ("How many tokens per second does the mesh pass on?", {"performance.md"}),
    ],
)
async def test_questions_about_the_project_find_the_right_page(memory: Memory, question: str, document_id: set[str]):

    async def there() -> bool:
        return document_id <= {each.document_id for each in (await memory.documents("turnwire-docs")).documents}

    await until(there, seconds=90)
    assert document_id & set(await memory.found(question, "turnwire-docs", max_chunks=3))
