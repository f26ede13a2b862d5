"""The media type of a content, by its first bytes and its name."""

from __future__ import annotations

import codecs
import mimetypes

HEAD = 4096
"""So many first bytes are looked at."""
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\0", "application/x-xz"),
    (0, b"(\xb5/\xfd", "application/zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"\x7fELF", "application/x-executable"),
    (0, b"SQLite format 3\0", "application/vnd.sqlite3"),
    (0, b"PAR1", "application/vnd.apache.parquet"),
    (0, b"OggS", "application/ogg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (8, b"WAVE", "audio/wav"),
    (4, b"ftyp", "video/mp4"),
)
_ZIPPED = {
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".epub": "application/epub+zip",
    ".jar": "application/java-archive",
}
_TEXTS = {".md": "text/markdown", ".json": "application/json", ".svg": "image/svg+xml", ".csv": "text/csv"}
_BINARY = "application/octet-stream"


def sniffed(name: str, head: bytes) -> str:
    """Returns the media type of a content; a name never makes text of what is none."""
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    if head.startswith(b"PK\x03\x04"):
        return _ZIPPED.get(suffix, "application/zip")
    for position, signature, mime_type in _SIGNATURES:
        if head[position : position + len(signature)] == signature and _fits(position, head):
            return mime_type
    if not _is_text(head):
        return _BINARY
    by_name = _TEXTS.get(suffix) or mimetypes.guess_type(f"file{suffix}", strict=False)[0]
    if by_name is not None and (by_name.startswith("text/") or suffix in _TEXTS or by_name.endswith(("xml", "json"))):
        return by_name
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "text/html"
    return "text/plain"


def _fits(position: int, head: bytes) -> bool:
    """The two formats within RIFF say so in their first bytes."""
    return position != 8 or head.startswith(b"RIFF")


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        # A character that is cut at the end of what is looked at is no fault.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
