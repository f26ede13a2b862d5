"""What the tests of documents share: a small tokenizer that needs no weights, readers that use it, and PDFs."""

from __future__ import annotations

import asyncio
import string
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from turnwire.memory.documents import DocumentReader, Limits, ParsedDocument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

_WORDS = (
    "the a of and to in is it that was for on with as be at by this have from or one had not but what all ##s ##ing"
)


def small_tokenizer(path: Path) -> Path:
    """Writes a tokenizer of the kind of MiniLM's: words and their pieces, and [UNK] for scripts it does not know."""
    letters = string.ascii_lowercase + string.digits
    pieces = ["[UNK]", *string.punctuation, *letters, *(f"##{letter}" for letter in letters), *_WORDS.split()]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer: Any = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(path))
    return path


@asynccontextmanager
async def reading(folder: Path, *, limits: Limits | None = None, workers: int = 1) -> AsyncGenerator[DocumentReader]:
    """Yields a reader, and closes it."""
    reader = DocumentReader(limits=limits, workers=workers, tokenizer=small_tokenizer(folder / "tokenizer.json"))
    try:
        yield reader
    finally:
        await reader.close()


async def read(
    reader: DocumentReader,
    data: bytes,
    mime_type: str = "",
    name: str = "document",
    *,
    size: int = 64,
    overlap: int = 8,
) -> ParsedDocument:
    """Reads a document with chunks of a usual size."""
    return await reader.read(data=data, mime_type=mime_type, name=name, chunk_size_tokens=size, overlap_tokens=overlap)


def worker_processes() -> list[psutil.Process]:
    """Returns the processes that read documents for this one."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        try:
            if "turnwire.memory.documents.worker" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


async def until(holds: Callable[[], bool]) -> None:
    """Returns when something holds."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


def pdf_of(objects: Sequence[bytes], *, trailer: bytes = b"") -> bytes:
    """Returns a PDF file with these objects, numbered from 1; the first is its catalogue."""
    data = bytearray(b"%PDF-1.7\n")
    places: list[int] = []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for place in places:
        data += b"%010d 00000 n \n" % place
    data += b"trailer\n<< /Size %d /Root 1 0 R %b >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, table)
    return bytes(data)


def pdf(pages: Sequence[str], *, title: str = "") -> bytes:
    """Returns a PDF with a line of text on each page."""
    contents = [f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode() for text in pages]
    return pdf_with([stream(zlib.compress(content), filters=b"/FlateDecode") for content in contents], title=title)


def pdf_with(contents: Sequence[bytes], *, title: str = "") -> bytes:
    """Returns a PDF with these contents of pages."""
    count = len(contents)
    kids = b" ".join(b"%d 0 R" % (5 + 2 * number) for number in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%b] >>" % (count, kids),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (%b) >>" % title.encode(),
    ]
    for number, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            b"/Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % (6 + 2 * number)
        )
        objects.append(content)
    return pdf_of(objects, trailer=b"/Info 4 0 R")


def stream(data: bytes, *, filters: bytes) -> bytes:
    """Returns a stream object."""
    return b"<< /Length %d /Filter %b >>\nstream\n%b\nendstream" % (len(data), filters, data)
