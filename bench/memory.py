"""`python -m bench.memory`: how well banks find what answers a question, and how long that takes as they grow.

`quality` puts the passages of a set that others wrote into banks of a running service, asks its questions, and ranks
the same passages by BM25 of the library bm25s beside it. `scale` measures a question to banks of 10,000 and 100,000
chunks of made-up vectors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import bm25s
import grpc
import structlog
import uvloop

from bench.questions import perl_faq
from bench.report import machine, percentile
from bench.scale import measured
from turnwire import weights
from turnwire.common.v1 import message_pb2
from turnwire.memory.v1 import bank_pb2, document_pb2, memory_bank_service_pb2, memory_service_pb2
from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceStub
from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.questions import Questions

DEPTH = 10
"""Passages that are looked at: an answer among the first ten counts."""
_PROVIDERS: dict[str, list[dict[str, Any]]] = {
    "inference": [{"provider_id": "embeddings", "provider_type": "inline::minilm"}],
    "memory": [
        {"provider_id": "vectors", "provider_type": "inline::qdrant-edge"},
        {"provider_id": "file", "provider_type": "inline::sqlite"},
    ],
}
_KINDS = {
    "vector bank": bank_pb2.MemoryBank(bank_id="meaning", vector=bank_pb2.VectorBankConfig()),
    "keyword bank": bank_pb2.MemoryBank(bank_id="words", keyword=bank_pb2.KeywordBankConfig()),
}


@dataclass(frozen=True, slots=True)
class Ranking:
    """How one way of finding did."""

    name: str
    recall: float
    """Questions whose passage is among the first ten."""
    first: float
    """Questions whose passage is the first."""
    reciprocal_rank: float
    """The mean of 1/rank within the first ten."""
    p50_ms: float
    p95_ms: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("part", choices=["quality", "scale", "all"], nargs="?", default="all")
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000], help="sizes for `scale`")
    parser.add_argument("--questions", type=int, default=0, help="only so many; 0: all")
    chosen = parser.parse_args(arguments)
    # Standard output is for the result alone.
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(30)
    )
    figures: dict[str, Any] = {"machine": machine()}
    if chosen.part in {"quality", "all"}:
        figures["quality"] = uvloop.run(_quality(perl_faq(), chosen.questions))
    if chosen.part in {"scale", "all"}:
        figures["scale"] = [uvloop.run(measured(size)) for size in chosen.chunks]
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


async def _quality(questions: Questions, most: int) -> dict[str, Any]:
    weights.locate("minilm")
    asked = dict(list(questions.answers.items())[: most or None])
    sections: dict[str, Any] = {"providers": _PROVIDERS, "memory": {"docs_dir": ""}}
    async with (
        running_mesh("processes", services=("inference", "memory"), **sections) as mesh,
        grpc.aio.insecure_channel(mesh.address("memory")) as channel,
    ):
        documents: Any = MemoryServiceStub(channel)
        banks: Any = MemoryBankServiceStub(channel)
        filled = {name: await _fill(banks, documents, bank, questions.passages) for name, bank in _KINDS.items()}
        rankings = [_baseline(questions.passages, asked)]
        alone = {name: [bank.bank_id] for name, bank in _KINDS.items()}
        for name, bank_ids in {**alone, "both banks": [bank.bank_id for bank in _KINDS.values()]}.items():
            rankings.append(await _asked(documents, name, bank_ids, asked))
    return {
        "questions": len(asked),
        "passages": len(questions.passages),
        "filled": filled,
        "rankings": [asdict(ranking) for ranking in rankings],
    }


async def _fill(banks: Any, documents: Any, bank: bank_pb2.MemoryBank, passages: Mapping[str, str]) -> dict[str, float]:
    await banks.RegisterMemoryBank(memory_bank_service_pb2.RegisterMemoryBankRequest(bank=bank))
    begun = time.monotonic()
    everything = [
        document_pb2.Document(document_id=name, text=passage, mime_type="text/plain")
        for name, passage in passages.items()
    ]
    for start in range(0, len(everything), 100):
        request = memory_service_pb2.InsertDocumentsRequest(
            bank_id=bank.bank_id, documents=everything[start : start + 100]
        )
        async for response in documents.InsertDocuments(request):
            if response.progress.state == document_pb2.DOCUMENT_STATE_FAILED:
                raise RuntimeError(f"{response.progress.document_id}: {response.progress.failure.message}")
    got = await banks.GetMemoryBank(memory_bank_service_pb2.GetMemoryBankRequest(bank_id=bank.bank_id))
    return {"chunks": got.bank.chunks, "seconds": round(time.monotonic() - begun, 1)}


async def _asked(documents: Any, name: str, bank_ids: Sequence[str], asked: Mapping[str, str]) -> Ranking:
    ranks: list[int] = []
    seconds: list[float] = []
    for question, wanted in asked.items():
        part = message_pb2.ContentPart(text=question)
        request = memory_service_pb2.QueryRequest(
            bank_ids=bank_ids,
            messages=[message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])],
            max_chunks=100,
            max_tokens_in_context=1_000_000,
        )
        begun = time.monotonic()
        response = await documents.Query(request)
        seconds.append(time.monotonic() - begun)
        # Several chunks of one passage are one passage.
        found = list(dict.fromkeys(chunk.document_id for chunk in response.chunks))[:DEPTH]
        ranks.append(found.index(wanted) + 1 if wanted in found else 0)
    return _ranking(name, ranks, seconds)


def _baseline(passages: Mapping[str, str], asked: Mapping[str, str]) -> Ranking:
    """BM25 by bm25s as it comes: Lucene's formula, its English stop words, no stemming; whole passages."""
    names = list(passages)
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(passages.values()), stopwords="en", show_progress=False), show_progress=False)
    ranks: list[int] = []
    seconds: list[float] = []
    for question, wanted in asked.items():
        begun = time.monotonic()
        words = bm25s.tokenize(question, stopwords="en", show_progress=False)
        found, _ = retriever.retrieve(words, k=DEPTH, show_progress=False)
        seconds.append(time.monotonic() - begun)
        best = [names[int(index)] for index in found[0]]
        ranks.append(best.index(wanted) + 1 if wanted in best else 0)
    return _ranking("bm25s (baseline)", ranks, seconds)


def _ranking(name: str, ranks: Sequence[int], seconds: Sequence[float]) -> Ranking:
    return Ranking(
        name,
        recall=round(sum(rank > 0 for rank in ranks) / len(ranks), 4),
        first=round(sum(rank == 1 for rank in ranks) / len(ranks), 4),
        reciprocal_rank=round(statistics.fmean(1 / rank if rank else 0.0 for rank in ranks), 4),
        p50_ms=round(1000 * percentile(seconds, 0.5), 2),
        p95_ms=round(1000 * percentile(seconds, 0.95), 2),
    )


if __name__ == "__main__":
    sys.exit(main())
