"""The bytes of a document, wherever they are: in the request, an artifact, behind a URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from turnwire.errors import DocumentRefused, from_rpc_error
from turnwire.runtime.channels import upstream
from turnwire.tool_executor.v1 import artifact_service_pb2

if TYPE_CHECKING:
    from turnwire.memory.v1 import document_pb2
    from turnwire.runtime.fetch import GuardedFetcher
    from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub

MAX_BYTES = 32 * 1024 * 1024
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a document, and what is known of them."""

    data: bytes
    mime_type: str
    """Empty: to be sniffed."""
    name: str
    """A file name, or empty: for people, and for telling what is no better known."""
    uri: str


class Contents:
    """Gets the bytes of documents."""

    def __init__(self, artifacts: ArtifactServiceStub, fetcher: GuardedFetcher) -> None:
        """Asks the tool executor for artifacts, and `fetcher` for URLs."""
        self._artifacts = artifacts
        self._fetcher = fetcher

    async def of(self, document: document_pb2.Document) -> Content:
        """Returns the bytes of a document; what the document itself says goes before what its source says.

        Raises:
            DocumentRefused: it is larger than a document may be, or its URL is refused.
            TurnwireError: its source is away or has no such thing.
        """
        name, mime_type, uri = document.title, document.mime_type, document.uri
        match document.WhichOneof("content"):
            case "text":
                return Content(document.text.encode(), mime_type, name, uri)
            case "data":
                return Content(document.data, mime_type, name, uri)
            case "artifact_id":
                return await self._artifact(document)
            case "url":
                fetched = await self._fetcher.fetch(document.url, max_bytes=MAX_BYTES, seconds=_SECONDS)
                named = document.title or fetched.final_url.rstrip("/").rpartition("/")[2] or document.url
                kind = mime_type or fetched.mime_type.partition(";")[0].strip()
                return Content(fetched.data, kind, named, uri or fetched.final_url)
            case _:
                raise DocumentRefused(document.document_id, "it has no text: a bank of another kind takes it")

    async def _artifact(self, document: document_pb2.Document) -> Content:
        artifact_id = document.artifact_id
        try:
            asked = artifact_service_pb2.GetArtifactRequest(artifact_id=artifact_id)
            artifact = (await self._artifacts.GetArtifact(asked, timeout=_SECONDS)).artifact
            if artifact.size_bytes > MAX_BYTES:
                told = f"it has {artifact.size_bytes} bytes and documents have at most {MAX_BYTES}"
                raise DocumentRefused(artifact_id, told, limit=str(MAX_BYTES))
            data = bytearray()
            wanted = artifact_service_pb2.DownloadArtifactRequest(artifact_id=artifact_id)
            call = self._artifacts.DownloadArtifact(wanted, timeout=_SECONDS)
            async with upstream(call):
                async for piece in call:
                    data += piece.data
                    if len(data) > MAX_BYTES:
                        told = f"it has more than {MAX_BYTES} bytes"
                        raise DocumentRefused(artifact_id, told, limit=str(MAX_BYTES))
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="tool_executor") from error
        name = document.title or artifact.name
        return Content(bytes(data), document.mime_type or artifact.mime_type, name, document.uri)
