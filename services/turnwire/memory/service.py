"""The RPCs of `turnwire.memory.v1.MemoryService`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from turnwire.errors import NotFound
from turnwire.memory import validation
from turnwire.memory.store import documents as stored
from turnwire.memory.v1 import memory_service_pb2 as messages
from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceServicer
from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.runtime.paging import decode_position, encode_position, page_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.memory.insertion import Insertion
    from turnwire.memory.registry import Banks
    from turnwire.memory.retrieval import Retrieval
    from turnwire.memory.store.documents import Stored
    from turnwire.runtime.storage import Store, Transaction

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(messages.DESCRIPTOR.services_by_name["MemoryService"], "InsertDocuments", "Query")


class MemoryServicer(MemoryServiceServicer):
    """Serves documents in banks, and what fits a question."""

    def __init__(self, store: Store, banks: Banks, insertion: Insertion, retrieval: Retrieval) -> None:
        """Works on `banks`."""
        self._store = store
        self._banks = banks
        self._insertion = insertion
        self._retrieval = retrieval

    async def InsertDocuments(
        self, request: messages.InsertDocumentsRequest, context: Context
    ) -> AsyncIterator[messages.InsertDocumentsResponse]:
        """Puts documents into a bank and streams the progress."""
        validation.check_insert(request)
        tenant = current().tenant
        bank = await self._banks.writable(tenant, request.bank_id)
        async with aclosing(self._insertion.requested(tenant, bank, request)) as steps:
            async for progress in steps:
                yield messages.InsertDocumentsResponse(progress=progress)

    async def Query(self, request: messages.QueryRequest, context: Context) -> messages.QueryResponse:
        """Searches several banks at once."""
        validation.check_query(request)
        return await self._retrieval.query(current().tenant, request)

    async def ListDocuments(
        self, request: messages.ListDocumentsRequest, context: Context
    ) -> messages.ListDocumentsResponse:
        """Lists the documents of a bank, by id."""
        limit = page_size(request.page_size)
        (last,) = decode_position(request.page_token, ("",))
        validation.check_bank(request.bank_id)
        bank = await self._banks.get(current().tenant, request.bank_id)

        async def unit(tx: Transaction) -> list[Stored]:
            return await stored.page(tx, bank.uid, str(last), limit + 1)

        found = [each.message for each in await self._store.read(unit)]
        page = found[:limit]
        token = encode_position(page[-1].document_id) if len(found) > limit else ""
        return messages.ListDocumentsResponse(documents=page, next_page_token=token)

    async def GetDocument(self, request: messages.GetDocumentRequest, context: Context) -> messages.GetDocumentResponse:
        """Gets one document of a bank."""
        validation.check_document(request.bank_id, request.document_id)
        bank = await self._banks.get(current().tenant, request.bank_id)

        async def unit(tx: Transaction) -> Stored | None:
            return await stored.find(tx, bank.uid, request.document_id)

        found = await self._store.read(unit)
        if found is None:
            raise NotFound("document", request.document_id)
        return messages.GetDocumentResponse(document=found.message)

    async def DeleteDocument(
        self, request: messages.DeleteDocumentRequest, context: Context
    ) -> messages.DeleteDocumentResponse:
        """Removes a document from a bank."""
        validation.check_document(request.bank_id, request.document_id)
        bank = await self._banks.writable(current().tenant, request.bank_id)
        await self._insertion.delete(bank, request.document_id)
        return messages.DeleteDocumentResponse()
