"""Memory banks, by way of a `Client`: what is in `client.banks`."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.client.answers import answered
from turnwire.common.v1 import message_pb2
from turnwire.errors import from_rpc_error
from turnwire.memory.v1 import bank_pb2, document_pb2, memory_bank_service_pb2, memory_service_pb2
from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceStub
from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from turnwire.tool_executor.v1 import artifact_service_pb2
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

_UPLOAD_SECONDS = 600.0
_PIECE = 1024 * 1024


class Banks:
    """Banks, documents and questions, for one caller."""

    def __init__(self, channel: Callable[[str], Any], timeout: float) -> None:
        """Use `client.banks`."""
        self.bank_stub = MemoryBankServiceStub(channel("memory"))
        """The stub of MemoryBankService, for what has no method here."""
        self.memory_stub = MemoryServiceStub(channel("memory"))
        """The stub of MemoryService."""
        self._channel = channel
        self._timeout = timeout

    async def list(self, **fields: Any) -> memory_bank_service_pb2.ListMemoryBanksResponse:
        """Returns a page of banks; fields are those of ListMemoryBanksRequest."""
        request = memory_bank_service_pb2.ListMemoryBanksRequest(**fields)
        return await answered(self.bank_stub.ListMemoryBanks(request, timeout=self._timeout), service="memory")

    async def get(self, bank_id: str) -> bank_pb2.MemoryBank:
        """Returns a bank."""
        request = memory_bank_service_pb2.GetMemoryBankRequest(bank_id=bank_id)
        return (await answered(self.bank_stub.GetMemoryBank(request, timeout=self._timeout), service="memory")).bank

    async def register(self, bank: bank_pb2.MemoryBank, *, request_id: str = "") -> bank_pb2.MemoryBank:
        """Makes a bank."""
        request = memory_bank_service_pb2.RegisterMemoryBankRequest(bank=bank, request_id=request_id)
        return (
            await answered(self.bank_stub.RegisterMemoryBank(request, timeout=self._timeout), service="memory")
        ).bank

    async def unregister(self, bank_id: str) -> None:
        """Removes a bank and what it holds."""
        request = memory_bank_service_pb2.UnregisterMemoryBankRequest(bank_id=bank_id)
        await answered(self.bank_stub.UnregisterMemoryBank(request, timeout=self._timeout), service="memory")

    async def insert(
        self, bank_id: str, documents: Sequence[document_pb2.Document], *, request_id: str = ""
    ) -> AsyncGenerator[document_pb2.DocumentProgress]:
        """Puts documents into a bank and gives the progress as it comes."""
        request = memory_service_pb2.InsertDocumentsRequest(bank_id=bank_id, documents=documents, request_id=request_id)
        call: Any = self.memory_stub.InsertDocuments(request)
        try:
            async for response in call:
                yield response.progress
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="memory") from error
        finally:
            call.cancel()

    async def query(self, question: str, bank_ids: Sequence[str], **fields: Any) -> memory_service_pb2.QueryResponse:
        """Returns what fits a question; further fields are those of QueryRequest."""
        part = message_pb2.ContentPart(text=question, provenance=message_pb2.PROVENANCE_USER)
        message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])
        request = memory_service_pb2.QueryRequest(bank_ids=bank_ids, messages=[message], **fields)
        return await answered(self.memory_stub.Query(request, timeout=self._timeout), service="memory")

    async def documents(self, bank_id: str, **fields: Any) -> memory_service_pb2.ListDocumentsResponse:
        """Returns a page of the documents of a bank; further fields are those of ListDocumentsRequest."""
        request = memory_service_pb2.ListDocumentsRequest(bank_id=bank_id, **fields)
        return await answered(self.memory_stub.ListDocuments(request, timeout=self._timeout), service="memory")

    async def delete_document(self, bank_id: str, document_id: str) -> None:
        """Removes a document from a bank."""
        request = memory_service_pb2.DeleteDocumentRequest(bank_id=bank_id, document_id=document_id)
        await answered(self.memory_stub.DeleteDocument(request, timeout=self._timeout), service="memory")

    async def document(self, document_id: str, data: bytes, name: str = "") -> document_pb2.Document:
        """Returns a document with the bytes of a file; large ones are uploaded first (see `release`)."""
        document = document_pb2.Document(document_id=document_id, title=name)
        if len(data) <= _PIECE:
            document.data = data
            return document
        file_name = document_id.rpartition("/")[2]
        opening = artifact_service_pb2.OpenUpload(name=file_name, mime_type=mimetypes.guess_type(file_name)[0] or "")
        call = self._artifacts().UploadArtifact(_pieces(opening, data), timeout=_UPLOAD_SECONDS)
        document.artifact_id = (await answered(call, service="tool_executor")).artifact.artifact_id
        return document

    async def release(self, document: document_pb2.Document) -> None:
        """Removes what `document` has uploaded; a bank that has read it needs it no more."""
        if document.artifact_id:
            request = artifact_service_pb2.DeleteArtifactRequest(artifact_id=document.artifact_id)
            call = self._artifacts().DeleteArtifact(request, timeout=self._timeout)
            await answered(call, service="tool_executor")

    def _artifacts(self) -> Any:
        return ArtifactServiceStub(self._channel("tool_executor"))


def _pieces(
    opening: artifact_service_pb2.OpenUpload, data: bytes
) -> Iterator[artifact_service_pb2.UploadArtifactRequest]:
    yield artifact_service_pb2.UploadArtifactRequest(open=opening)
    for start in range(0, len(data), _PIECE):
        yield artifact_service_pb2.UploadArtifactRequest(data=data[start : start + _PIECE])
