"""Documents and their chunks, as rows: which version of a document is to be seen, and which are hidden."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from turnwire.common.v1 import retrieval_pb2
from turnwire.memory.store import banks
from turnwire.memory.v1 import document_pb2, memory_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.runtime.storage import Row, Transaction

_REQUEST_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Stored:
    """A document that a bank holds."""

    revision: str
    digest: str
    message: document_pb2.StoredDocument


async def find(tx: Transaction, uid: str, document_id: str) -> Stored | None:
    """Returns a document, or None."""
    row = await tx.fetchrow(f"{_SELECT} WHERE uid = $1 AND document_id = $2", uid, document_id)
    return _stored(row) if row is not None else None


async def page(tx: Transaction, uid: str, after: str, limit: int) -> list[Stored]:
    """Returns documents by id, those after one."""
    rows = await tx.fetch(
        f"{_SELECT} WHERE uid = $1 AND document_id > $2 ORDER BY document_id LIMIT $3", uid, after, limit
    )
    return [_stored(row) for row in rows]


async def hide(tx: Transaction, uid: str, revision: str) -> None:
    """Hides a version: a provider may have it from now on, and it is not to be seen."""
    await tx.execute("INSERT INTO hidden (revision, uid) VALUES ($1, $2)", revision, uid)


async def hidden(tx: Transaction, uid: str) -> tuple[str, ...]:
    """Returns the versions that a bank's provider may have and that are not to be seen."""
    return tuple(str(row[0]) for row in await tx.fetch("SELECT revision FROM hidden WHERE uid = $1", uid))


async def all_hidden(tx: Transaction) -> dict[str, list[str]]:
    """Returns the hidden versions by the uid of their bank."""
    found: dict[str, list[str]] = {}
    for revision, uid in await tx.fetch("SELECT revision, uid FROM hidden"):
        found.setdefault(str(uid), []).append(str(revision))
    return found


async def show(tx: Transaction, uid: str, stored: Stored, chunks: Sequence[retrieval_pb2.RetrievedChunk]) -> str | None:
    """Shows a hidden version in the place of the one before it, whose revision is returned and hidden."""
    document_id = stored.message.document_id
    earlier = await find(tx, uid, document_id)
    if earlier is not None:
        await take(tx, uid, earlier)
    await tx.execute("DELETE FROM hidden WHERE revision = $1", stored.revision)
    await tx.execute(
        "INSERT INTO documents (uid, document_id, revision, digest, chunks, body) VALUES ($1, $2, $3, $4, $5, $6)",
        uid,
        document_id,
        stored.revision,
        stored.digest,
        stored.message.chunks,
        stored.message.SerializeToString(),
    )
    await tx.execute_many(
        "INSERT INTO chunks (revision, ordinal, body) VALUES ($1, $2, $3)",
        [(stored.revision, ordinal, chunk.SerializeToString()) for ordinal, chunk in enumerate(chunks)],
    )
    await banks.changed(tx, uid)
    return earlier.revision if earlier is not None else None


async def take(tx: Transaction, uid: str, stored: Stored) -> None:
    """Takes a document away; its revision is hidden until its provider has removed it."""
    await tx.execute("DELETE FROM documents WHERE revision = $1", stored.revision)
    await tx.execute("DELETE FROM chunks WHERE revision = $1", stored.revision)
    await hide(tx, uid, stored.revision)
    await banks.changed(tx, uid)


async def forget(tx: Transaction, revisions: Sequence[str]) -> None:
    """Forgets hidden versions that their provider has removed."""
    for revision in revisions:
        await tx.execute("DELETE FROM hidden WHERE revision = $1", revision)


async def chunk(
    tx: Transaction, revision: str, ordinal: int
) -> tuple[document_pb2.StoredDocument, retrieval_pb2.RetrievedChunk] | None:
    """Returns a chunk and its document, or None when the version is not to be seen."""
    row = await tx.fetchrow(
        "SELECT documents.body, chunks.body FROM documents JOIN chunks ON chunks.revision = documents.revision"
        " WHERE documents.revision = $1 AND chunks.ordinal = $2",
        revision,
        ordinal,
    )
    if row is None:
        return None
    return (
        document_pb2.StoredDocument.FromString(cast("bytes", row[0])),
        retrieval_pb2.RetrievedChunk.FromString(cast("bytes", row[1])),
    )


async def request_result(
    tx: Transaction, tenant: str, request_id: str
) -> tuple[str, list[document_pb2.DocumentProgress]] | None:
    """Returns (digest, how each document ended) of an insertion, or None."""
    row = await tx.fetchrow(
        "SELECT digest, result FROM requests WHERE tenant = $1 AND request_id = $2", tenant, request_id
    )
    if row is None:
        return None
    rest = memoryview(cast("bytes", row[1]))
    results: list[document_pb2.DocumentProgress] = []
    while rest:
        size = int.from_bytes(rest[:4], "little")
        response = memory_service_pb2.InsertDocumentsResponse.FromString(bytes(rest[4 : 4 + size]))
        results.append(response.progress)
        rest = rest[4 + size :]
    return str(row[0]), results


async def remember_request(
    tx: Transaction, tenant: str, request_id: str, digest: str, results: Sequence[document_pb2.DocumentProgress]
) -> None:
    """Keeps how an insertion ended, for a day."""
    packed = bytearray()
    for progress in results:
        body = memory_service_pb2.InsertDocumentsResponse(progress=progress).SerializeToString()
        packed += len(body).to_bytes(4, "little") + body
    now = int(time.time())
    await tx.execute("DELETE FROM requests WHERE create_time < $1", now - _REQUEST_SECONDS)
    await tx.execute(
        "INSERT INTO requests (tenant, request_id, digest, result, create_time) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (tenant, request_id) DO NOTHING",
        tenant,
        request_id,
        digest,
        bytes(packed),
        now,
    )


_SELECT = "SELECT revision, digest, body FROM documents"


def _stored(row: Row) -> Stored:
    message = document_pb2.StoredDocument.FromString(cast("bytes", row[2]))
    return Stored(str(row[0]), str(row[1]), message)
