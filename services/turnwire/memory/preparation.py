"""What a document becomes: its chunks, and how it is told from another version of itself."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from turnwire.common.v1 import retrieval_pb2
from turnwire.errors import DocumentRefused
from turnwire.memory.contents import Content
from turnwire.memory.v1 import document_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.memory.contents import Contents
    from turnwire.memory.documents import ParsedDocument
    from turnwire.memory.store.banks import Bank
    from turnwire.memory.tokens import Tokens

_RECIPE = 1
"""Counts the ways in which this version and earlier ones made entries out of documents."""
_TITLE_CHARACTERS = 100


class Reader(Protocol):
    """Reads documents; `turnwire.memory.documents.DocumentReader` does."""

    async def read(
        self, *, data: bytes, mime_type: str, name: str, chunk_size_tokens: int, overlap_tokens: int
    ) -> ParsedDocument:
        """Returns the text of a document and its chunks."""
        ...

    async def close(self) -> None:
        """Ends what it has started."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A document with its bytes at hand, not read yet."""

    document: document_pb2.Document
    content: Content
    sha256: str
    digest: str
    """Of all that the chunks are made from: the same digest, the same chunks."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that can be put into its bank."""

    message: document_pb2.StoredDocument
    chunks: Sequence[retrieval_pb2.RetrievedChunk]
    """Text and place; the rest is the document's."""
    embedded: Sequence[str]
    """What the vectors are made from: the chunks, each with what it stands under."""


class Preparation:
    """Turns documents into chunks."""

    def __init__(self, contents: Contents, reader: Reader, tokens: Tokens) -> None:
        """Gets bytes from `contents`, and has them read by `reader`."""
        self._contents = contents
        self._reader = reader
        self._tokens = tokens

    async def source(self, bank: Bank, document: document_pb2.Document) -> Source:
        """Gets the bytes of a document.

        Raises:
            DocumentRefused: banks of this kind take no such content, or its source refuses it.
            TurnwireError: its source is away.
        """
        structured = document.WhichOneof("content")
        if structured in {"key_value", "graph"}:
            wanted = {"key_value": "keyvalue", "graph": "graph"}[structured]
            if bank.kind != wanted:
                told = (
                    f"`{structured}` belongs into a bank of the kind {wanted}, and this one is of the kind {bank.kind}"
                )
                raise DocumentRefused(document.document_id, told)
            message = document.key_value if structured == "key_value" else document.graph
            data = message.SerializeToString(deterministic=True)
            content = Content(data, document.mime_type or "application/json", document.title, document.uri)
        elif bank.kind in {"keyvalue", "graph"}:
            content_field = "key_value" if bank.kind == "keyvalue" else "graph"
            told = f"a bank of the kind {bank.kind} takes `{content_field}`, and no text"
            raise DocumentRefused(document.document_id, told)
        else:
            content = await self._contents.of(document)
        return await asyncio.to_thread(_hashed, bank, document, content)

    async def prepared(self, bank: Bank, source: Source) -> Prepared:
        """Reads a document.

        Raises:
            DocumentRefused: it cannot be read, or says nothing.
        """
        document = source.document
        match bank.kind:
            case "keyvalue":
                text = f"{document.key_value.key}: {document.key_value.value_json}"
                parsed_title, mime_type = document.title or document.key_value.key, source.content.mime_type
                chunks = [retrieval_pb2.RetrievedChunk(text=text, tokens=await self._tokens.count(text))]
            case "graph":
                # What an entity stands among is only known when it is asked for.
                parsed_title, mime_type = document.title, source.content.mime_type
                chunks = [retrieval_pb2.RetrievedChunk()]
            case "vector" | "keyword":
                parsed = await self._parsed(bank, source)
                parsed_title, mime_type = parsed.title, parsed.mime_type
                chunks = [
                    retrieval_pb2.RetrievedChunk(
                        text=chunk.text,
                        page=chunk.page,
                        heading=chunk.heading,
                        start_byte=chunk.start_byte,
                        end_byte=chunk.end_byte,
                        tokens=chunk.tokens,
                    )
                    for chunk in parsed.chunks
                ]
        title = document.title or parsed_title
        message = document_pb2.StoredDocument(
            document_id=document.document_id,
            title=title or source.content.name,
            mime_type=mime_type,
            uri=source.content.uri,
            content_sha256=source.sha256,
            chunks=len(chunks),
            metadata=document.metadata,
        )
        message.insert_time.GetCurrentTime()
        return Prepared(message, chunks, [_embedded(title, chunk) for chunk in chunks])

    async def _parsed(self, bank: Bank, source: Source) -> ParsedDocument:
        chunking = bank.message.vector if bank.kind == "vector" else bank.message.keyword
        parsed = await self._reader.read(
            data=source.content.data,
            mime_type=source.content.mime_type,
            name=source.content.name or source.document.document_id,
            chunk_size_tokens=chunking.chunk_size_tokens,
            overlap_tokens=chunking.overlap_tokens,
        )
        if not parsed.chunks:
            raise DocumentRefused(source.document.document_id, "there is no text in it")
        return parsed


def _hashed(bank: Bank, document: document_pb2.Document, content: Content) -> Source:
    sha256 = hashlib.sha256(content.data).hexdigest()
    facts = document_pb2.Document(
        document_id=document.document_id,
        title=document.title,
        mime_type=content.mime_type,
        uri=content.uri,
        metadata=document.metadata,
    )
    config = bank.message.vector if bank.kind == "vector" else bank.message.keyword
    settings = f"{_RECIPE} {bank.kind} {config.chunk_size_tokens} {config.overlap_tokens} {sha256}\0"
    whole = settings.encode() + facts.SerializeToString(deterministic=True)
    return Source(document, content, sha256, hashlib.sha256(whole).hexdigest())


def _embedded(title: str, chunk: retrieval_pb2.RetrievedChunk) -> str:
    """A chunk says little of what it is about when its heading stands in an earlier one."""
    above = [part[:_TITLE_CHARACTERS] for part in dict.fromkeys((title, chunk.heading)) if part]
    return "\n".join([": ".join(above), chunk.text]) if above else chunk.text
