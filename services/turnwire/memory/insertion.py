"""Documents into banks: read, turned into vectors, and shown in one step."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
import structlog

from turnwire.errors import IdempotencyConflict, Internal, NotFound, TurnwireError, from_rpc_error
from turnwire.ids import new_id
from turnwire.memory.banks.port import Entry, labels
from turnwire.memory.store import banks as stored_banks
from turnwire.memory.store import documents as stored
from turnwire.memory.store.documents import Stored
from turnwire.memory.v1 import document_pb2
from turnwire.runtime.failpoints import Boundary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from turnwire.memory.embedding import Embeddings
    from turnwire.memory.preparation import Preparation, Prepared, Source
    from turnwire.memory.registry import Banks
    from turnwire.memory.store.banks import Bank
    from turnwire.memory.v1 import memory_service_pb2
    from turnwire.runtime.storage import Store, Transaction

    Progress = document_pb2.DocumentProgress
    Tell = Callable[..., None]

_log = structlog.get_logger(__name__)
_REMEMBERING = Boundary("memory.request_remembered")
_ANNOUNCING = Boundary("memory.version_announced")
_STORING = Boundary("memory.chunks_stored")
_SHOWING = Boundary("memory.version_shown")
_CLEARING = Boundary("memory.version_cleared")
_AT_ONCE = 2
"""Documents in work at once: one is read while another one's vectors are made."""
_ENDS = frozenset(
    {
        document_pb2.DOCUMENT_STATE_INSERTED,
        document_pb2.DOCUMENT_STATE_UNCHANGED,
        document_pb2.DOCUMENT_STATE_FAILED,
    }
)


class Insertion:
    """Puts documents into banks, and takes them out."""

    def __init__(self, store: Store, banks: Banks, embeddings: Embeddings, preparation: Preparation) -> None:
        """Works on the banks of `store`."""
        self._store = store
        self._banks = banks
        self._embeddings = embeddings
        self._preparation = preparation

    async def requested(
        self, tenant: str, bank: Bank, request: memory_service_pb2.InsertDocumentsRequest
    ) -> AsyncGenerator[Progress]:
        """Does what a request asks for, or tells how it ended when it came before.

        Raises:
            IdempotencyConflict: its id came before with another body.
        """
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        request_id = request.request_id

        async def earlier(tx: Transaction) -> tuple[str, list[Progress]] | None:
            return await stored.request_result(tx, tenant, request_id) if request_id else None

        came = await self._store.read(earlier)
        if came is not None:
            if came[0] != digest:
                raise IdempotencyConflict("request_id", request_id)
            for progress in came[1]:
                yield progress
            return
        ends: list[Progress] = []
        async with aclosing(self.insert(bank, request.documents)) as steps:
            async for progress in steps:
                if progress.state in _ENDS:
                    ends.append(progress)
                yield progress

        async def remember(tx: Transaction) -> None:
            await stored.remember_request(tx, tenant, request_id, digest, ends)

        # What failed for a passing reason has to be tried again, not told again.
        if request_id and not any(end.failure.retryable for end in ends):
            async with _REMEMBERING:
                await self._store.write(remember)

    async def insert(self, bank: Bank, documents: Sequence[document_pb2.Document]) -> AsyncGenerator[Progress]:
        """Puts documents into a bank; one that fails stops no other."""
        told: asyncio.Queue[Progress | None] = asyncio.Queue()
        places = asyncio.Semaphore(_AT_ONCE)

        async def work(document: document_pb2.Document) -> None:
            async with places:
                await self._one(bank, document, told.put_nowait)

        async def all_of_them() -> None:
            try:
                await asyncio.gather(*(work(document) for document in documents))
            finally:
                told.put_nowait(None)

        working = asyncio.create_task(all_of_them())
        try:
            while (progress := await told.get()) is not None:
                yield progress
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def delete(self, bank: Bank, document_id: str) -> None:
        """Takes a document out of a bank.

        Raises:
            NotFound: it is not there.
        """

        async def unit(tx: Transaction) -> Stored | None:
            found = await stored.find(tx, bank.uid, document_id)
            if found is not None:
                await stored.take(tx, bank.uid, found)
            return found

        async with self._banks.lock(bank.uid):
            found = await self._store.write(unit)
        if found is None:
            raise NotFound("document", document_id)
        await self._clear(bank, [found.revision])

    async def _one(self, bank: Bank, document: document_pb2.Document, put: Callable[[Progress], None]) -> None:
        def tell(
            state: document_pb2.DocumentState.ValueType,
            done: int = 0,
            total: int = 0,
            error: TurnwireError | None = None,
        ) -> None:
            progress = document_pb2.DocumentProgress(
                document_id=document.document_id, state=state, chunks_done=done, chunks_total=total
            )
            if error is not None:
                progress.failure.CopyFrom(error.to_failure())
            put(progress)

        try:
            await self._insert(bank, document, tell)
        except TurnwireError as error:
            tell(document_pb2.DOCUMENT_STATE_FAILED, error=error)
        except grpc.RpcError as error:
            tell(document_pb2.DOCUMENT_STATE_FAILED, error=from_rpc_error(error, service="memory"))
        except Exception:
            # A defect that one document brings out: the others are not to suffer.
            _log.exception("document_defect", bank_id=bank.message.bank_id, document_id=document.document_id)
            tell(document_pb2.DOCUMENT_STATE_FAILED, error=Internal(service="memory"))

    async def _insert(self, bank: Bank, document: document_pb2.Document, tell: Tell) -> None:
        tell(document_pb2.DOCUMENT_STATE_PARSING)
        source = await self._preparation.source(bank, document)

        async def present(tx: Transaction) -> Stored | None:
            return await stored.find(tx, bank.uid, document.document_id)

        before = await self._store.read(present)
        if before is not None and before.digest == source.digest:
            count = before.message.chunks
            tell(document_pb2.DOCUMENT_STATE_UNCHANGED, count, count)
            return
        prepared = await self._preparation.prepared(bank, source)
        total = len(prepared.chunks)
        vectors: list[Sequence[float]] = []
        if bank.kind == "vector":
            tell(document_pb2.DOCUMENT_STATE_EMBEDDING, 0, total)
            vectors = await self._embeddings.vectors(
                bank.message.vector.embedding_model,
                bank.dimension,
                prepared.embedded,
                lambda done: tell(document_pb2.DOCUMENT_STATE_EMBEDDING, done, total),
            )
        shown = await self._show(bank, source, prepared, vectors)
        state = document_pb2.DOCUMENT_STATE_INSERTED if shown else document_pb2.DOCUMENT_STATE_UNCHANGED
        tell(state, total, total)

    async def _show(self, bank: Bank, source: Source, prepared: Prepared, vectors: Sequence[Sequence[float]]) -> bool:
        """Puts a version into the index, shows it, and removes the one before; false when it is shown already.

        What a crash leaves is hidden: the version that was not yet, or the one that is no longer shown.
        """
        revision = new_id("rev")
        place = bank.place
        provider = self._banks.provider(bank)

        async def announce(tx: Transaction) -> tuple[str, ...]:
            if await stored_banks.generation(tx, bank.uid) is None:
                raise NotFound("memory bank", bank.message.bank_id)
            hidden = await stored.hidden(tx, bank.uid)
            await stored.hide(tx, bank.uid, revision)
            return hidden

        async def show(tx: Transaction) -> str | None:
            now = await stored.find(tx, bank.uid, prepared.message.document_id)
            if now is not None and now.digest == source.digest:
                return revision
            version = Stored(revision, source.digest, prepared.message)
            return await stored.show(tx, bank.uid, version, prepared.chunks)

        async with self._banks.lock(bank.uid):
            async with _ANNOUNCING:
                hidden = await self._store.write(announce)
            entry = Entry(
                revision=revision,
                document_id=prepared.message.document_id,
                labels=labels(prepared.message.metadata),
                texts=[chunk.text for chunk in prepared.chunks],
                vectors=vectors,
                key_value=source.document.key_value if bank.kind == "keyvalue" else None,
                graph=source.document.graph if bank.kind == "graph" else None,
                hidden=hidden,
            )
            try:
                async with _STORING:
                    await provider.put(place, entry)
            except BaseException:
                # Left hidden if this fails too, or is cancelled; the sweep removes it then.
                await asyncio.shield(self._clear(bank, [revision]))
                raise
            async with _SHOWING:
                replaced = await self._store.write(show)
        if replaced is not None:
            await self._clear(bank, [replaced])
        return replaced != revision

    async def _clear(self, bank: Bank, revisions: Sequence[str]) -> None:
        """Removes hidden versions from the index; what cannot be removed now stays hidden."""

        async def unit(tx: Transaction) -> None:
            await stored.forget(tx, revisions)

        try:
            await self._banks.provider(bank).remove(bank.place, revisions)
        except TurnwireError as error:
            _log.warning("versions_left", bank_id=bank.message.bank_id, count=len(revisions), error=error.message)
            return
        async with _CLEARING:
            await self._store.write(unit)
