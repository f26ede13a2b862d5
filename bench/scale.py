"""How long a question takes to a vector bank of many chunks, and what the bank weighs, without any model.

The service's own code puts made-up vectors into an embedded bank and asks it, from the question's vector to the chunks
with their texts; what making the vector of a question takes comes on top and depends on the model alone.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psutil

from bench.report import percentile
from turnwire.common.v1 import message_pb2, retrieval_pb2
from turnwire.memory.banks import PROVIDERS
from turnwire.memory.embedding import EmbeddingModel
from turnwire.memory.insertion import Insertion
from turnwire.memory.preparation import Prepared, Source
from turnwire.memory.registry import Banks
from turnwire.memory.retrieval import Retrieval
from turnwire.memory.store.schema import SCHEMA
from turnwire.memory.tokens import Tokens
from turnwire.memory.v1 import bank_pb2, document_pb2, memory_bank_service_pb2, memory_service_pb2
from turnwire.runtime.settings import ProviderSettings
from turnwire.runtime.storage import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnwire.memory.embedding import Embeddings
    from turnwire.memory.preparation import Preparation
    from turnwire.memory.store.banks import Bank

DIMENSION = 384
_TOPICS = 200
_CHUNKS = 100
"""Chunks of a document."""
_QUESTIONS = 400
_COMPARED = 100
_TEXT = "Nothing is meant by these words, of which a chunk has about as many as one of the usual length. " * 8


class _MadeUp:
    """Vectors around some hundred topics, as those of texts are, in the place of `Embeddings`: one for each text."""

    def __init__(self) -> None:
        self._topics = [_normal(random.Random(f"topic {number}")) for number in range(_TOPICS)]

    async def vectors(
        self, address: str, dimension: int, texts: Sequence[str], done: Callable[[int], None] | None = None
    ) -> list[Sequence[float]]:
        return [self.of(text) for text in texts]

    async def model(self, name: str) -> EmbeddingModel:
        return EmbeddingModel("made/up", DIMENSION)

    def of(self, text: str) -> list[float]:
        """Returns the same vector for the same text."""
        chance = random.Random(text)
        topic = self._topics[chance.randrange(_TOPICS)]
        mixed = [0.7 * one + 0.7 * other for one, other in zip(topic, _normal(chance), strict=True)]
        length = math.hypot(*mixed)
        return [value / length for value in mixed]


def _normal(chance: random.Random) -> list[float]:
    vector = [chance.gauss(0, 1) for _ in range(DIMENSION)]
    length = math.hypot(*vector)
    return [value / length for value in vector]


def _text(document_id: str, number: int) -> str:
    return f"{document_id} {number} {_TEXT}"


class _Ready:
    """Documents that are chunks already, in the place of `Preparation`."""

    async def source(self, bank: Bank, document: document_pb2.Document) -> Source:
        return Source(document, cast("Any", None), document.document_id, document.document_id)

    async def prepared(self, bank: Bank, source: Source) -> Prepared:
        name = source.document.document_id
        chunks = [retrieval_pb2.RetrievedChunk(text=_text(name, number), tokens=200) for number in range(_CHUNKS)]
        message = document_pb2.StoredDocument(document_id=name, chunks=len(chunks), content_sha256=name)
        return Prepared(message, chunks, [chunk.text for chunk in chunks])


async def measured(size: int) -> dict[str, Any]:
    """Returns the figures of a bank of so many chunks."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = await SqliteStore.open(folder / "memory.sqlite3", SCHEMA)
        entry = ProviderSettings(provider_id="vectors", provider_type="inline::qdrant-edge")
        provider = PROVIDERS.build(entry)
        await provider.start(folder)
        try:
            return await _measured(size, folder, store, provider)
        finally:
            await provider.close()
            await store.close()


async def _measured(size: int, folder: Path, store: SqliteStore, provider: Any) -> dict[str, Any]:
    made_up = _MadeUp()
    embeddings = cast("Embeddings", made_up)
    banks = Banks(store, [provider], embeddings)
    insertion = Insertion(store, banks, embeddings, cast("Preparation", _Ready()))
    retrieval = Retrieval(store, banks, embeddings, Tokens())
    bank = await banks.register(
        "default",
        memory_bank_service_pb2.RegisterMemoryBankRequest(
            bank=bank_pb2.MemoryBank(bank_id="many", vector=bank_pb2.VectorBankConfig())
        ),
    )
    documents = [
        document_pb2.Document(document_id=f"d{number}", text="x") for number in range(math.ceil(size / _CHUNKS))
    ]
    begun = time.monotonic()
    async for progress in insertion.insert(bank, documents):
        if progress.state == document_pb2.DOCUMENT_STATE_FAILED:
            raise RuntimeError(progress.failure.message)
    filled = time.monotonic() - begun
    figures: dict[str, Any] = {"chunks": size, "fill_seconds": round(filled, 1)}
    engine = _engine()
    # Building an index goes on while it is asked, unless there is none to be built.
    indexing = size >= provider.Config().index_after
    if indexing:
        figures["while_indexing"] = await _asked(retrieval)
        await _indexed(folder / "memory-vectors")
        figures["index_seconds"] = round(time.monotonic() - begun - filled, 1)
    figures["indexed" if indexing else "without_index"] = await _asked(retrieval)
    figures["engine_rss_mb"] = round(engine.memory_info().rss / 2**20)
    figures["service_rss_mb"] = round(psutil.Process().memory_info().rss / 2**20)
    figures["disk_mb"] = await asyncio.to_thread(_megabytes, folder)
    figures["share_of_exact_neighbours"] = await _compared(retrieval, made_up, [each.document_id for each in documents])
    return figures


async def _asked(retrieval: Retrieval) -> dict[str, float]:
    seconds: list[float] = []
    for number in range(_QUESTIONS):
        begun = time.monotonic()
        response = await retrieval.query("default", _question(number))
        seconds.append(time.monotonic() - begun)
        if len(response.chunks) != 10:
            raise RuntimeError(f"{len(response.chunks)} chunks of 10 were found")
    return {"p50_ms": round(1000 * percentile(seconds, 0.5), 2), "p95_ms": round(1000 * percentile(seconds, 0.95), 2)}


async def _compared(retrieval: Retrieval, made_up: _MadeUp, document_ids: Sequence[str]) -> float:
    """Returns how many of the ten nearest chunks are found, of those that comparing with all finds."""
    texts = [_text(name, number) for name in document_ids for number in range(_CHUNKS)]
    everything = np.array([made_up.of(text) for text in texts], dtype=np.float32)
    shares: list[float] = []
    for number in range(_COMPARED):
        request = _question(number)
        found = {chunk.text for chunk in (await retrieval.query("default", request)).chunks}
        asked = np.array(made_up.of(request.messages[0].parts[0].text), dtype=np.float32)
        nearest = np.argsort(-(everything @ asked))[:10]
        shares.append(len(found & {texts[index] for index in nearest}) / 10)
    return round(sum(shares) / len(shares), 4)


def _question(number: int) -> memory_service_pb2.QueryRequest:
    part = message_pb2.ContentPart(text=f"question {number}")
    message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])
    return memory_service_pb2.QueryRequest(bank_ids=["many"], messages=[message], max_chunks=10)


async def _indexed(folder: Path) -> None:
    """Returns when nothing is being built any more."""
    quiet = 0
    while quiet < 10:
        await asyncio.sleep(0.5)
        building = await asyncio.to_thread(_builds, folder)
        quiet = 0 if building else quiet + 1


def _builds(folder: Path) -> bool:
    return any(path.suffix in {".copy", ".making"} for path in folder.iterdir())


def _megabytes(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20)


def _engine() -> psutil.Process:
    (engine,) = [each for each in psutil.Process().children() if "turnwire.memory.edge.worker" in each.cmdline()]
    return engine
