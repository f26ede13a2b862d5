"""What fits a question, out of several banks at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from turnwire.errors import DeadlineExceeded, TurnwireError
from turnwire.memory.banks.port import Hit, Question, labels
from turnwire.memory.fusion import merged, packed
from turnwire.memory.store import banks as stored_banks
from turnwire.memory.store import documents as stored
from turnwire.memory.v1 import memory_service_pb2
from turnwire.memory.validation import question as question_of
from turnwire.runtime.identity import remaining

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.common.v1 import retrieval_pb2
    from turnwire.memory.embedding import Embeddings
    from turnwire.memory.registry import Banks
    from turnwire.memory.store.banks import Bank
    from turnwire.memory.tokens import Tokens
    from turnwire.runtime.storage import Store, Transaction

    Chunk = retrieval_pb2.RetrievedChunk

_log = structlog.get_logger(__name__)
DEFAULT_CHUNKS = 10
DEFAULT_TOKENS = 4096
_BANK_SECONDS = 20.0
"""A bank that takes longer is left out."""
_MARGIN_SECONDS = 0.3
"""So much before the caller's deadline a bank is left out: what the others found still reaches the caller."""
_TRIES = 3


class Retrieval:
    """Answers questions."""

    def __init__(self, store: Store, banks: Banks, embeddings: Embeddings, tokens: Tokens) -> None:
        """Works on the banks of `store`."""
        self._store = store
        self._banks = banks
        self._embeddings = embeddings
        self._tokens = tokens

    async def query(self, tenant: str, request: memory_service_pb2.QueryRequest) -> memory_service_pb2.QueryResponse:
        """Searches the banks in parallel and returns what fits best.

        Raises:
            NotFound: one of the banks does not exist.
            TurnwireError: none of the banks can be searched; the first one's error.
        """
        banks = [await self._banks.get(tenant, bank_id) for bank_id in request.bank_ids]
        found, failures = await self._searched(banks, request)
        if failures and not found:
            raise next(iter(failures.values()))
        for bank_id, error in failures.items():
            _log.warning("bank_unavailable", bank_id=bank_id, error=str(error))
        lists: dict[tuple[str, str], list[Chunk]] = {}
        for bank in banks:
            if bank.message.bank_id in found:
                chunks = [chunk for chunk in found[bank.message.bank_id] if chunk.score >= request.min_score]
                lists.setdefault((bank.kind, bank.message.vector.embedding_model), []).extend(chunks)
        ranked = [sorted(chunks, key=lambda chunk: -chunk.score) for chunks in lists.values()]
        chunks = packed(
            merged(ranked),
            max_chunks=request.max_chunks or DEFAULT_CHUNKS,
            max_tokens=request.max_tokens_in_context or DEFAULT_TOKENS,
        )
        return memory_service_pb2.QueryResponse(chunks=chunks, unavailable_bank_ids=sorted(failures))

    async def _searched(
        self, banks: Sequence[Bank], request: memory_service_pb2.QueryRequest
    ) -> tuple[dict[str, list[Chunk]], dict[str, TurnwireError]]:
        text = question_of(request)
        left = remaining()
        seconds = _BANK_SECONDS if left is None else max(0.05, min(_BANK_SECONDS, left - _MARGIN_SECONDS))
        models = {
            bank.message.vector.embedding_model: bank.dimension
            for bank in banks
            if bank.kind == "vector" and bank.dimension
        }
        # One question, one vector, however many banks share the model.
        vectors = {
            address: asyncio.create_task(self._embeddings.vectors(address, dimension, [text]))
            for address, dimension in models.items()
        }
        searches = [
            asyncio.create_task(
                self._bounded(bank, request, text, vectors.get(bank.message.vector.embedding_model), seconds)
            )
            for bank in banks
        ]
        try:
            answers = await asyncio.gather(*searches, return_exceptions=True)
        finally:
            for task in (*searches, *vectors.values()):
                task.cancel()
            await asyncio.gather(*searches, *vectors.values(), return_exceptions=True)
        found: dict[str, list[Chunk]] = {}
        failures: dict[str, TurnwireError] = {}
        for bank, answer in zip(banks, answers, strict=True):
            if isinstance(answer, TurnwireError):
                failures[bank.message.bank_id] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[bank.message.bank_id] = answer
        return found, failures

    async def _bounded(
        self,
        bank: Bank,
        request: memory_service_pb2.QueryRequest,
        text: str,
        embedding: asyncio.Task[list[Sequence[float]]] | None,
        seconds: float,
    ) -> list[Chunk]:
        try:
            async with asyncio.timeout(seconds):
                if bank.kind == "vector" and embedding is None:
                    return []  # it is being made, and has nothing yet
                vector: Sequence[float] = ()
                if embedding is not None:
                    # Several banks wait for it; one that gives up does not end it for the others.
                    (vector,) = await asyncio.shield(embedding)
                return await self._consistent(bank, request, text, vector)
        except TimeoutError:
            told = f"the bank {bank.message.bank_id} did not answer within {seconds:.1f} s"
            raise DeadlineExceeded("memory", detail=told) from None

    async def _consistent(
        self, bank: Bank, request: memory_service_pb2.QueryRequest, text: str, vector: Sequence[float]
    ) -> list[Chunk]:
        """Returns what a bank finds in one state: with the old version of each document or the new one, never without.

        The index and the store change one after the other, so a search is done again when the bank has changed
        meanwhile; before a bank that never stops changing it stops the changes for a moment.
        """
        for _ in range(_TRIES):
            chunks = await self._attempt(bank, request, text, vector)
            if chunks is not None:
                return chunks
        async with self._banks.lock(bank.uid):
            return await self._attempt(bank, request, text, vector) or []

    async def _attempt(
        self, bank: Bank, request: memory_service_pb2.QueryRequest, text: str, vector: Sequence[float]
    ) -> list[Chunk] | None:
        async def before(tx: Transaction) -> tuple[int | None, tuple[str, ...]]:
            return await stored_banks.generation(tx, bank.uid), await stored.hidden(tx, bank.uid)

        generation, hidden = await self._store.read(before)
        # Texts that stand in two banks, and chunks that do not fit the budget, leave places free.
        limit = 2 * (request.max_chunks or DEFAULT_CHUNKS)
        question = Question(text, limit, vector, labels(request.filters), hidden)
        hits = await self._banks.provider(bank).search(bank.place, question)

        async def after(tx: Transaction) -> tuple[int | None, list[Chunk | None]]:
            return await stored_banks.generation(tx, bank.uid), [await _told(tx, bank, hit) for hit in hits]

        now, told = await self._store.read(after)
        chunks = [chunk for chunk in told if chunk is not None]
        if generation is not None and (now != generation or len(chunks) < len(told)):
            return None
        for chunk in chunks:
            chunk.tokens = chunk.tokens or await self._tokens.count(chunk.text)
        return chunks


async def _told(tx: Transaction, bank: Bank, hit: Hit) -> Chunk | None:
    """Returns a found chunk with all that is known of it, or None when its document was replaced."""
    row = await stored.chunk(tx, hit.revision, hit.ordinal)
    if row is None:
        return None
    document, chunk = row
    chunk.bank_id = bank.message.bank_id
    chunk.document_id = document.document_id
    chunk.chunk_id = f"{document.document_id}#{hit.ordinal}"
    chunk.text = hit.text or chunk.text
    chunk.score = hit.score
    chunk.title = document.title
    chunk.uri = document.uri
    chunk.metadata.update(document.metadata)
    return chunk
