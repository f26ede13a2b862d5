"""Documents made to hurt whoever reads them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import docx
from pypdf import PdfReader, PdfWriter

from tests.memory.reading import pdf, pdf_of, pdf_with, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MIB = 1024 * 1024
_MAIN = "word/document.xml"
_WORDS = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


@dataclass(frozen=True, slots=True)
class Hostile:
    """A document, what it is declared as, and the limit that it passes where that is known."""

    make: Callable[[], bytes]
    limit: str | None
    mime_type: str = ""
    name: str = "document"


def deflated(size: int, *, times: int = 1, wbits: int = 15) -> bytes:
    """Returns what unpacks to so many bytes, without ever having them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    block = b" " * _MIB
    packed = b"".join([*(packer.compress(block) for _ in range(size // _MIB)), packer.flush()])
    for _ in range(times - 1):
        packed = zlib.compress(packed, 9)
    return packed


def word_document(main: bytes | None = None, *, more: Iterable[tuple[str, bytes]] = ()) -> bytes:
    """Returns a DOCX whose main part is replaced, with more files in it."""
    whole = io.BytesIO()
    document = docx.Document()
    document.add_paragraph("Something to read.")
    document.save(whole)
    changed = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, main if main is not None and member == _MAIN else source.read(member))
        for name, content in more:
            target.writestr(name, content)
    return changed.getvalue()


def _pdf_bomb() -> bytes:
    return pdf_with([stream(deflated(400 * _MIB), filters=b"/FlateDecode")])


def _pdf_bomb_of_bombs() -> bytes:
    return pdf_with([stream(deflated(1024 * _MIB, times=3), filters=b"[/FlateDecode /FlateDecode /FlateDecode]")])


def _pdf_of_text() -> bytes:
    """A small file whose pages all show the same large content."""
    line = b"BT /F1 12 Tf 72 700 Td (" + b"again and again " * 1_000 + b") Tj ET\n"
    content = stream(zlib.compress(line * 20, 9), filters=b"/FlateDecode")
    kids = b" ".join(b"4 0 R" for _ in range(4_000))
    return pdf_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 4000 /Kids [%b] >>" % kids,
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            b"/Resources << /Font << /F1 3 0 R >> >> /Contents 5 0 R >>",
            content,
        ]
    )


def _pdf_deep() -> bytes:
    return pdf_with([b"[" * 200_000 + b"]" * 200_000])


def _pdf_circle() -> bytes:
    return pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 9 /Kids [2 0 R 2 0 R] >>"])


def _pdf_page_tree() -> bytes:
    """Twenty levels, and each names the next one ten times."""
    levels = [
        b"<< /Type /Pages /Count 1000000000 /Kids [%b] >>" % b" ".join([b"%d 0 R" % (level + 1)] * 10)
        for level in range(2, 22)
    ]
    return pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", *levels, b"<< /Type /Page /MediaBox [0 0 1 1] >>"])


def _pdf_many_pages() -> bytes:
    return pdf(["page"] * 5_001)


def _pdf_with_password() -> bytes:
    writer = PdfWriter(PdfReader(io.BytesIO(pdf(["secret"]))))
    writer.encrypt("password", algorithm="RC4-128")
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def _zip_bomb() -> bytes:
    size = 190 * _MIB
    packed = deflated(size, wbits=-15)
    checksum = 0
    for _ in range(size // _MIB):
        checksum = zlib.crc32(b" " * _MIB, checksum)
    return _zip_of(_MAIN.encode(), packed, checksum, size)


def _zip_bomb_that_lies() -> bytes:
    """Says that its file is small."""
    return _zip_of(_MAIN.encode(), deflated(400 * _MIB, wbits=-15), 0, 1_000)


def _zip_of(name: bytes, packed: bytes, checksum: int, size: int) -> bytes:
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0x21, checksum, len(packed), size, len(name), 0)
    local = b"PK\x03\x04" + common + name + packed
    central = b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def _billion_laughs() -> bytes:
    entities = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 10))
    return word_document(
        f'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY l0 "lol">{entities}]>'
        f"<w:document {_WORDS}><w:body><w:p><w:r><w:t>&l9;</w:t></w:r></w:p></w:body></w:document>".encode()
    )


def _entity_of_a_file() -> bytes:
    return word_document(
        f'<?xml version="1.0" encoding="utf-16"?><!DOCTYPE d [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
        f"<w:document {_WORDS}><w:body><w:p><w:r><w:t>&f;</w:t></w:r></w:p></w:body></w:document>".encode("utf-16")
    )


def _word_tables() -> bytes:
    depth = 3_000
    opening, closing = "<w:tbl><w:tr><w:tc>" * depth, "</w:tc></w:tr></w:tbl>" * depth
    return word_document(f"<w:document {_WORDS}><w:body>{opening}{closing}</w:body></w:document>".encode())


HOSTILE = {
    "pdf bomb": Hostile(_pdf_bomb, None),
    "pdf bomb of bombs": Hostile(_pdf_bomb_of_bombs, None),
    "pdf of too much text": Hostile(_pdf_of_text, "text_bytes"),
    "pdf nested too deep": Hostile(_pdf_deep, None),
    "pdf whose pages are a circle": Hostile(_pdf_circle, None),
    "pdf with a huge page tree": Hostile(_pdf_page_tree, None),
    "pdf with too many pages": Hostile(_pdf_many_pages, "pages"),
    "pdf that is cut off": Hostile(lambda: pdf(["one", "two"])[:300], None),
    "pdf with a password": Hostile(_pdf_with_password, None),
    "zip bomb": Hostile(_zip_bomb, "ratio"),
    "zip bomb that lies": Hostile(_zip_bomb_that_lies, None),
    "zip with too many files": Hostile(
        lambda: word_document(more=[(f"word/{number}.xml", b"<a/>") for number in range(4_001)]), "members"
    ),
    "docx that is cut off": Hostile(lambda: word_document()[:2_000], None),
    "docx with a billion laughs": Hostile(_billion_laughs, "entities"),
    "docx with an entity of a file": Hostile(_entity_of_a_file, "entities"),
    "docx with tables nested too deep": Hostile(_word_tables, None),
    "100 MB of text": Hostile(lambda: b"words and more " * 7_000_000, "input_bytes", "text/plain"),
    "text of 30 MB": Hostile(lambda: b"words and more " * 2_000_000, "text_bytes", "text/plain"),
    "html nested 100,000 deep": Hostile(lambda: b"<div>" * 100_000 + b"in" + b"</div>" * 100_000, "depth", "text/html"),
    "csv with a cell of 50 MB": Hostile(lambda: b'a,b\n1,"' + b"x" * 50_000_000 + b'"\n', "input_bytes", "text/csv"),
    "csv with a cell of 20 MB": Hostile(lambda: b'a,b\n1,"' + b"x" * 20_000_000 + b'"\n', "cell_bytes", "text/csv"),
    "csv whose header is repeated a million times": Hostile(
        lambda: b"h" * 100_000 + b"\n" + b"1\n" * 1_000_000, "text_bytes", "text/csv"
    ),
    "a program called pdf": Hostile(lambda: b"\x7fELF\x02\x01\x01" + bytes(10_000), None, "", "report.pdf"),
    "a program declared as pdf": Hostile(lambda: b"\x7fELF\x02\x01\x01" + bytes(10_000), None, "application/pdf"),
    "a pdf declared as text": Hostile(lambda: pdf(["one"]), None, "text/plain"),
    "a picture": Hostile(lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), None, "image/png"),
    "zeros": Hostile(lambda: bytes(1_000_000), None),
    "nothing": Hostile(lambda: b"", None),
    "only spaces": Hostile(lambda: b" \n\t" * 100_000, None, "text/plain"),
}
"""By what they are. Whoever reads one refuses it, and reads the next document."""
