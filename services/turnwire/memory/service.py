"""The RPCs of the memory service.

Memory banks comes with a later version: every method answers UNIMPLEMENTED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceServicer
from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceServicer
from turnwire.runtime.unimplemented import unimplemented

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.memory.v1 import memory_bank_service_pb2, memory_service_pb2

    Context = grpc.aio.ServicerContext[Any, Any]

_INSTEAD = "Put what the model should read into the messages."


class MemoryServicer(MemoryServiceServicer):
    """Answers that this version does not serve `MemoryService`."""

    @unimplemented("MemoryService/InsertDocuments", _INSTEAD)
    def InsertDocuments(
        self, request: memory_service_pb2.InsertDocumentsRequest, context: Context
    ) -> AsyncIterator[memory_service_pb2.InsertDocumentsResponse]:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("MemoryService/Query", _INSTEAD)
    async def Query(
        self, request: memory_service_pb2.QueryRequest, context: Context
    ) -> memory_service_pb2.QueryResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("MemoryService/ListDocuments", _INSTEAD)
    async def ListDocuments(
        self, request: memory_service_pb2.ListDocumentsRequest, context: Context
    ) -> memory_service_pb2.ListDocumentsResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("MemoryService/GetDocument", _INSTEAD)
    async def GetDocument(
        self, request: memory_service_pb2.GetDocumentRequest, context: Context
    ) -> memory_service_pb2.GetDocumentResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("MemoryService/DeleteDocument", _INSTEAD)
    async def DeleteDocument(
        self, request: memory_service_pb2.DeleteDocumentRequest, context: Context
    ) -> memory_service_pb2.DeleteDocumentResponse:
        """Is not served yet."""
        raise NotImplementedError


class MemoryBankServicer(MemoryBankServiceServicer):
    """Answers that this version does not serve `MemoryBankService`."""

    @unimplemented("MemoryBankService/ListMemoryBanks", _INSTEAD)
    async def ListMemoryBanks(
        self, request: memory_bank_service_pb2.ListMemoryBanksRequest, context: Context
    ) -> memory_bank_service_pb2.ListMemoryBanksResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("MemoryBankService/GetMemoryBank", _INSTEAD)
    async def GetMemoryBank(
        self, request: memory_bank_service_pb2.GetMemoryBankRequest, context: Context
    ) -> memory_bank_service_pb2.GetMemoryBankResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("MemoryBankService/RegisterMemoryBank", _INSTEAD)
    async def RegisterMemoryBank(
        self, request: memory_bank_service_pb2.RegisterMemoryBankRequest, context: Context
    ) -> memory_bank_service_pb2.RegisterMemoryBankResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("MemoryBankService/UnregisterMemoryBank", _INSTEAD)
    async def UnregisterMemoryBank(
        self, request: memory_bank_service_pb2.UnregisterMemoryBankRequest, context: Context
    ) -> memory_bank_service_pb2.UnregisterMemoryBankResponse:
        """Is not served yet."""
        raise NotImplementedError
