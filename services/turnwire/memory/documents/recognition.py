"""What a document is: what its bytes show, what it was declared as, what its name ends in, in this order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from turnwire.memory.documents.document import Refused
from turnwire.memory.documents.formats import DOCX, FORMATS, HTML, PDF, PLAIN

if TYPE_CHECKING:
    from turnwire.memory.documents.formats import Format

_UNKNOWN = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/unknown"})
# Texts that have no format of their own here are read as plain ones.
_AS_PLAIN = re.compile(
    r"text/[a-z0-9.+-]+|application/(json|xml|yaml|x-yaml|toml|x-sh|javascript|sql|x-ndjson|[a-z0-9.-]+\+(json|xml|yaml))"
)
_SIGNATURES = (
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\0asm", "a program"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an encrypted document of an office program, or one of its old formats"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"II*\0", "a picture"),
    (b"MM\0*", "a picture"),
    (b"RIFF", "a picture or sound"),
    (b"ID3", "sound"),
    (b"OggS", "sound"),
    (b"fLaC", "sound"),
    (b"\x1f\x8b", "a packed file"),
    (b"BZh", "a packed file"),
    (b"\xfd7zXZ\0", "a packed file"),
    (b"\x28\xb5\x2f\xfd", "a packed file"),
    (b"7z\xbc\xaf\x27\x1c", "a packed file"),
    (b"Rar!", "a packed file"),
    (b"SQLite format 3\0", "a database"),
    (b"{\\rtf", "a document in RTF"),
)
_HTML_START = re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_LOOKED_AT = 1024


def recognised(data: bytes, mime_type: str, name: str) -> tuple[Format, str]:
    """Returns the format of a document, and the character set it was declared with.

    Raises:
        Refused: it is of no format that is read, or not of the declared one.
    """
    declared, charset = _declaration(mime_type)
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    shown = _shown(data)
    if shown is None and b"%PDF-" in data[:_LOOKED_AT] and (_declared(declared) is PDF or extension == "pdf"):
        # Readers accept something before the mark, as mail programs leave there.
        shown = PDF
    if shown is not None and not shown.is_text:
        if declared not in _UNKNOWN and _declared(declared) is not shown:
            raise Refused(f"it was declared as {declared}, and its content is {shown.mime_type}")
        return shown, charset
    if declared not in _UNKNOWN:
        wanted = _declared(declared)
        if wanted is None:
            raise Refused(f"documents of the type {declared} are not read; there are: {_choice()}")
        if not wanted.is_text:
            raise Refused(f"it was declared as {declared}, and its content is something else")
        return wanted, charset
    for format_ in FORMATS:
        if extension in format_.extensions:
            if not format_.is_text:
                raise Refused(f"its name ends in .{extension}, and its content is something else")
            return format_, charset
    return shown or PLAIN, charset


def _declaration(mime_type: str) -> tuple[str, str]:
    kind, _, parameters = mime_type.partition(";")
    charset = ""
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset":
            charset = value.strip().strip("\"'")
    return kind.strip().lower(), charset


def _declared(mime_type: str) -> Format | None:
    for format_ in FORMATS:
        if mime_type == format_.mime_type or mime_type in format_.aliases:
            return format_
    return PLAIN if _AS_PLAIN.fullmatch(mime_type) else None


def _shown(data: bytes) -> Format | None:
    """Returns the format that the first bytes show; None for a text of any kind."""
    beginning = data[:_LOOKED_AT]
    if beginning.lstrip().startswith(b"%PDF-"):
        return PDF
    if beginning.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        # Which files the archive holds stands at its end.
        if b"word/" in data[-256 * 1024 :] or b"word/" in data[: 64 * 1024]:
            return DOCX
        raise Refused(f"its content is a packed file and no document; there are: {_choice()}")
    for signature, what in _SIGNATURES:
        if beginning.startswith(signature):
            raise Refused(f"its content is {what}; there are: {_choice()}")
    return HTML if _HTML_START.match(_after_comments(beginning)) else None


def _after_comments(beginning: bytes) -> bytes:
    beginning = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    while beginning.startswith(b"<!--"):
        beginning = beginning.partition(b"-->")[2].lstrip()
    return beginning


def _choice() -> str:
    return ", ".join(format_.mime_type for format_ in FORMATS)
