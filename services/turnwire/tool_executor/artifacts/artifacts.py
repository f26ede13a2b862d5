"""The artifacts of all tenants. A content is on the disk before its row is in the store, so no row is without one."""

from __future__ import annotations

import hashlib
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.errors import (
    ContentLost,
    DocumentRefused,
    IdempotencyConflict,
    InvalidArgument,
    NotFound,
    QuotaExhausted,
)
from turnwire.ids import new_id
from turnwire.runtime.failpoints import Boundary
from turnwire.tool_executor.artifacts.sniffing import HEAD, sniffed
from turnwire.tool_executor.locks import KeyedLocks
from turnwire.tool_executor.store import artifacts as stored
from turnwire.tool_executor.v1 import artifact_pb2, artifact_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from turnwire.runtime.settings import ArtifactSettings
    from turnwire.runtime.storage import Store, Transaction
    from turnwire.tool_executor.artifacts.port import BlobDraft, Blobs

_log = structlog.get_logger(__name__)

_CONTENT = Boundary("tool_executor.artifact_content")
_ROW = Boundary("tool_executor.artifact")


class Artifacts:
    """Keeps files by tenant and id."""

    def __init__(self, store: Store, blobs: Blobs, settings: ArtifactSettings) -> None:
        """What is known of them is in `store`, their contents are in `blobs`."""
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._locks = KeyedLocks()
        """By tenant and hash: nobody removes a content while somebody else takes it for his own."""

    @asynccontextmanager
    async def draft(self, name: str) -> AsyncGenerator[Draft]:
        """Gives a file to write to; what is not kept is thrown away."""
        blob = await self._blobs.draft()
        try:
            yield Draft(self, blob, name)
        finally:
            await blob.discard()

    async def keep(
        self,
        tenant: str,
        name: str,
        data: bytes,
        *,
        mime_type: str = "",
        session_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> artifact_pb2.Artifact:
        """Keeps bytes as a file.

        Raises:
            DocumentRefused: they are too many.
            QuotaExhausted: the tenant keeps too much already.
        """
        opened = artifact_service_pb2.OpenUpload(
            name=name, mime_type=mime_type, session_id=session_id, metadata=metadata
        )
        async with self.draft(name) as draft:
            await draft.write(data)
            return await draft.keep(tenant, opened)

    async def get(self, tenant: str, artifact_id: str) -> artifact_pb2.Artifact:
        """Returns what is known of a file.

        Raises:
            NotFound: there is none.
        """

        async def unit(tx: Transaction) -> artifact_pb2.Artifact | None:
            return await stored.get(tx, tenant, artifact_id)

        found = await self._store.read(unit)
        if found is None:
            raise NotFound("artifact", artifact_id)
        return found

    async def read(
        self, tenant: str, artifact_id: str, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes]:
        """Yields the bytes of a file from `start` to `end`, exclusive, or to its end.

        Raises:
            NotFound: there is none.
            InvalidArgument: it ends before `start`.
            ContentLost: its bytes are not there as they were stored.
        """
        artifact = await self.get(tenant, artifact_id)
        if start > artifact.size_bytes:
            raise InvalidArgument.one("start_byte", f"lies beyond the end: the file has {artifact.size_bytes} bytes")
        last = artifact.size_bytes if end is None else min(end, artifact.size_bytes)
        whole = start == 0 and last == artifact.size_bytes
        digest = hashlib.sha256()
        try:
            async with aclosing(self._blobs.read(tenant, artifact.sha256, start, last)) as pieces:
                async for piece in pieces:
                    start += len(piece)
                    digest.update(piece)
                    # Nobody has the whole of a content that was altered where it lies.
                    if whole and start == last and digest.hexdigest() != artifact.sha256:
                        raise ContentLost(artifact_id, "was altered")
                    yield piece
        except FileNotFoundError:
            await self.get(tenant, artifact_id)  # deleted meanwhile: then it is not found
            raise ContentLost(artifact_id, "is missing") from None
        if start < last:
            raise ContentLost(artifact_id, "is cut")

    async def content(self, tenant: str, artifact_id: str, *, most: int) -> tuple[artifact_pb2.Artifact, bytes]:
        """Returns a file with all its bytes.

        Raises:
            NotFound: there is none.
            DocumentRefused: it is larger than `most`.
        """
        artifact = await self.get(tenant, artifact_id)
        if artifact.size_bytes > most:
            raise DocumentRefused(
                artifact.name, f"it has {artifact.size_bytes} bytes, and {most} are taken", limit=str(most)
            )
        data = bytearray()
        async with aclosing(self.read(tenant, artifact_id)) as pieces:
            async for piece in pieces:
                data += piece
        return artifact, bytes(data)

    async def page(
        self, tenant: str, session_id: str, before: tuple[int, str], limit: int
    ) -> list[artifact_pb2.Artifact]:
        """Returns the newest files before a (time, id)."""

        async def unit(tx: Transaction) -> list[artifact_pb2.Artifact]:
            return await stored.page(tx, tenant, session_id, before, limit)

        return await self._store.read(unit)

    async def delete(self, tenant: str, artifact_id: str) -> None:
        """Removes a file; its content goes with the last file that has it.

        Raises:
            NotFound: there is none.
        """
        artifact = await self.get(tenant, artifact_id)

        async def unit(tx: Transaction) -> tuple[bool, bool]:
            removed = await stored.delete(tx, tenant, artifact_id)
            return removed, await stored.has_content(tx, tenant, artifact.sha256)

        async with self._locks.held((tenant, artifact.sha256)):
            removed, shared = await self._store.write(unit)
            if removed and not shared:
                await self._remove(tenant, artifact.sha256)
        if not removed:
            raise NotFound("artifact", artifact_id)

    async def sweep(self) -> int:
        """Removes contents without a file, which a process that died has left; returns how many."""
        removed = 0
        await self._blobs.tidy(self._is_used)
        for tenant, sha256 in await self._blobs.listed():
            async with self._locks.held((tenant, sha256)):
                if not await self._is_used(tenant, sha256):
                    await self._remove(tenant, sha256)
                    removed += 1
        if removed:
            _log.info("artifacts_swept", removed=removed)
        return removed

    async def _remove(self, tenant: str, sha256: str) -> None:
        await self._blobs.delete(tenant, sha256, lambda: self._is_used(tenant, sha256))

    async def _is_used(self, tenant: str, sha256: str) -> bool:
        async def unit(tx: Transaction) -> bool:
            return await stored.has_content(tx, tenant, sha256)

        # Through the writer: it comes after what was queued before it, committed or not.
        return await self._store.write(unit)

    async def _kept(
        self, tenant: str, blob: BlobDraft, artifact: artifact_pb2.Artifact, request_id: str, digest: str
    ) -> artifact_pb2.Artifact:
        limit = self._settings.tenant_bytes

        async def unit(tx: Transaction) -> artifact_pb2.Artifact:
            earlier = await stored.by_request(tx, tenant, request_id) if request_id else None
            if earlier is not None:
                if earlier[0] != digest:
                    raise IdempotencyConflict("request_id", request_id)
                return earlier[1]
            used = await stored.used_bytes(tx, tenant)
            if used + artifact.size_bytes > limit:
                raise QuotaExhausted("artifact", used_bytes=used, limit_bytes=limit)
            await stored.insert(tx, tenant, artifact, request_id, digest)
            return artifact

        async with self._locks.held((tenant, artifact.sha256)):
            async with _CONTENT:
                await blob.keep(tenant, artifact.sha256)
            kept: artifact_pb2.Artifact | None = None
            try:
                async with _ROW:
                    kept = await self._store.write(unit)
                await blob.confirm(tenant, artifact.sha256)
                return kept
            finally:
                if kept is not artifact and not await self._is_used(tenant, artifact.sha256):
                    await self._remove(tenant, artifact.sha256)


class Draft:
    """A file that is being written."""

    def __init__(self, artifacts: Artifacts, blob: BlobDraft, name: str) -> None:
        """Use `Artifacts.draft`."""
        self._artifacts = artifacts
        self._blob = blob
        self._name = name
        self._hash = hashlib.sha256()
        self._head = b""
        self.size = 0

    async def write(self, data: bytes) -> None:
        """Appends bytes.

        Raises:
            DocumentRefused: the file becomes larger than files may be.
        """
        limit = self._artifacts._settings.file_bytes
        self.size += len(data)
        if self.size > limit:
            raise DocumentRefused(
                self._name, f"it has more than the {limit} bytes that a file may have", limit=str(limit)
            )
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        self._hash.update(data)
        await self._blob.write(data)

    async def keep(self, tenant: str, opened: artifact_service_pb2.OpenUpload) -> artifact_pb2.Artifact:
        """Keeps what was written; a repeat of a request id returns the first file.

        Raises:
            InvalidArgument: another hash was expected.
            IdempotencyConflict: the request id was used for something else.
            QuotaExhausted: the tenant keeps too much already.
        """
        sha256 = self._hash.hexdigest()
        if opened.sha256 and opened.sha256.lower() != sha256:
            raise InvalidArgument.one("open.sha256", f"is {opened.sha256.lower()}, and what came has {sha256}")
        created = Timestamp()
        created.GetCurrentTime()
        created.nanos -= created.nanos % 1000  # the store has microseconds, and pages go by them
        artifact = artifact_pb2.Artifact(
            artifact_id=new_id("art"),
            name=opened.name,
            mime_type=opened.mime_type or sniffed(opened.name, self._head),
            size_bytes=self.size,
            sha256=sha256,
            session_id=opened.session_id,
            metadata=opened.metadata,
            create_time=created,
        )
        return await self._artifacts._kept(tenant, self._blob, artifact, opened.request_id, _digest(opened, sha256))


def _digest(opened: artifact_service_pb2.OpenUpload, sha256: str) -> str:
    body = artifact_service_pb2.OpenUpload()
    body.CopyFrom(opened)
    # Whether the caller told the hash or not, the content is the same.
    body.sha256 = sha256
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
