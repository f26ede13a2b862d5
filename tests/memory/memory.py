"""The memory service as its callers have it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.common.v1 import message_pb2
from turnwire.errors import from_rpc_error
from turnwire.memory.v1 import bank_pb2, document_pb2, memory_bank_service_pb2, memory_service_pb2
from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceStub
from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

    from tests.memory.conftest import WordVectors
    from turnwire.testing.mesh import RunningMesh

EDGE = {"provider_id": "vectors", "provider_type": "inline::qdrant-edge"}
FILE = {"provider_id": "file", "provider_type": "inline::sqlite"}
PARSING, EMBEDDING, INSERTED, UNCHANGED, FAILED = range(1, 6)
_SECONDS = 60.0


class Memory:
    """Calls the service; failures are typed."""

    def __init__(self, mesh: RunningMesh, channel: Any, key: str = "") -> None:
        self.mesh = mesh
        self._documents: Any = MemoryServiceStub(channel)
        self._banks: Any = MemoryBankServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    async def register(self, bank_id: str, kind: str, request_id: str = "", **fields: Any) -> Any:
        """Makes a bank; `kind` is a word, and its settings are fields."""
        bank = bank_pb2.MemoryBank(bank_id=bank_id)
        for name in [name for name in fields if name in bank.DESCRIPTOR.fields_by_name]:
            bank.MergeFrom(bank_pb2.MemoryBank(**{name: fields.pop(name)}))
        if kind:
            getattr(bank, kind).SetInParent()
            bank.MergeFrom(bank_pb2.MemoryBank(**{kind: fields}))  # pyright: ignore[reportArgumentType] - its fields
        request = memory_bank_service_pb2.RegisterMemoryBankRequest(bank=bank, request_id=request_id)
        return (await self._called(self._banks.RegisterMemoryBank, request)).bank

    async def unregister(self, bank_id: str) -> None:
        request = memory_bank_service_pb2.UnregisterMemoryBankRequest(bank_id=bank_id)
        await self._called(self._banks.UnregisterMemoryBank, request)

    async def get(self, bank_id: str) -> Any:
        request = memory_bank_service_pb2.GetMemoryBankRequest(bank_id=bank_id)
        return (await self._called(self._banks.GetMemoryBank, request)).bank

    async def list(self, **fields: Any) -> Any:
        return await self._called(self._banks.ListMemoryBanks, memory_bank_service_pb2.ListMemoryBanksRequest(**fields))

    async def insert(
        self, bank_id: str, *documents: document_pb2.Document, request_id: str = ""
    ) -> Sequence[document_pb2.DocumentProgress]:
        """Inserts and returns all progress."""
        return [progress async for progress in self.inserting(bank_id, *documents, request_id=request_id)]

    async def inserting(
        self, bank_id: str, *documents: document_pb2.Document, request_id: str = ""
    ) -> AsyncGenerator[document_pb2.DocumentProgress]:
        """Inserts and gives the progress as it comes."""
        request = memory_service_pb2.InsertDocumentsRequest(bank_id=bank_id, documents=documents, request_id=request_id)
        call = self._documents.InsertDocuments(request, timeout=_SECONDS, metadata=self._metadata)
        try:
            async for response in call:
                yield response.progress
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="memory") from None
        finally:
            call.cancel()

    async def ends(self, bank_id: str, *documents: document_pb2.Document, request_id: str = "") -> dict[str, int]:
        """Inserts and returns how each document ended."""
        told = await self.insert(bank_id, *documents, request_id=request_id)
        return {each.document_id: each.state for each in told if each.state >= INSERTED}

    async def query(
        self, text: str, *bank_ids: str, seconds: float = _SECONDS, **fields: Any
    ) -> memory_service_pb2.QueryResponse:
        part = message_pb2.ContentPart(text=text)
        message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])
        request = memory_service_pb2.QueryRequest(bank_ids=bank_ids, messages=[message], **fields)
        return await self._called(self._documents.Query, request, seconds)

    async def found(self, text: str, *bank_ids: str, **fields: Any) -> Sequence[str]:
        """Returns the ids of the documents that a question finds, best first."""
        return [chunk.document_id for chunk in (await self.query(text, *bank_ids, **fields)).chunks]

    async def documents(self, bank_id: str, **fields: Any) -> Any:
        request = memory_service_pb2.ListDocumentsRequest(bank_id=bank_id, **fields)
        return await self._called(self._documents.ListDocuments, request)

    async def document(self, bank_id: str, document_id: str) -> Any:
        request = memory_service_pb2.GetDocumentRequest(bank_id=bank_id, document_id=document_id)
        return (await self._called(self._documents.GetDocument, request)).document

    async def delete(self, bank_id: str, document_id: str) -> None:
        request = memory_service_pb2.DeleteDocumentRequest(bank_id=bank_id, document_id=document_id)
        await self._called(self._documents.DeleteDocument, request)

    async def _called(self, method: Any, request: Any, seconds: float = _SECONDS) -> Any:
        try:
            return await method(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="memory") from None


def text(document_id: str, said: str, **fields: Any) -> document_pb2.Document:
    """Returns a document of plain text."""
    return document_pb2.Document(document_id=document_id, text=said, mime_type="text/plain", **fields)


def value(document_id: str, key: str, value_json: str, **fields: Any) -> document_pb2.Document:
    """Returns a value."""
    return document_pb2.Document(
        document_id=document_id, key_value=document_pb2.KeyValue(key=key, value_json=value_json), **fields
    )


async def until(holds: Callable[[], Awaitable[bool]], *, seconds: float = 25.0) -> None:
    """Asks again and again until it holds; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, f"it did not come to hold within {seconds} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def calling(mesh: RunningMesh, key: str = "") -> AsyncGenerator[Memory]:
    """Gives the service of a mesh."""
    async with grpc.aio.insecure_channel(mesh.address("memory")) as channel:
        yield Memory(mesh, channel, key)


@asynccontextmanager
async def running_memory(
    word_vectors: WordVectors | None = None,
    *banks: dict[str, Any],
    folder: Path | None = None,
    topology: Any = "one_process",
    docs_dir: str = "",
    services: Sequence[str] = ("inference", "memory"),
    **settings: Any,
) -> AsyncGenerator[Memory]:
    """Gives a service with banks of these providers (all embedded ones without any), and the services it needs."""
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted"}
    inference = [word_vectors.provider] if word_vectors is not None else [scripted]
    sections: dict[str, Any] = {
        "providers": {"inference": inference, "memory": list(banks) or [EDGE, FILE]},
        "memory": {"docs_dir": docs_dir},
        **settings,
    }
    async with running_mesh(topology, services=services, folder=folder, **sections) as mesh:
        async with calling(mesh) as memory:
            yield memory
