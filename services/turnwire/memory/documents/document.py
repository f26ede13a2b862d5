"""What a document becomes when it is read, and the limits within which it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document's text, of a length that an embedding model reads."""

    text: str
    page: int
    """The page, from 1; 0 where the format has none."""
    heading: str
    """The headings above it, outermost first, joined by ` > `; empty where there are none."""
    start_byte: int
    """Where it begins in the UTF-8 form of the document's text."""
    end_byte: int
    """Where it ends there."""
    tokens: int
    """Its length as the embedding model counts, without the marks of a text's start and end."""


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document that was read."""

    mime_type: str
    """What it was read as."""
    title: str
    """What it calls itself; empty where it does not."""
    text: str
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a document is taken, and what reading it may cost."""

    input_bytes: int = 32 * 1024 * 1024
    text_bytes: int = 20_000_000
    pages: int = 5_000
    members: int = 4_000
    """Files in a packed document."""
    unpacked_bytes: int = 200 * 1024 * 1024
    """All of them together."""
    ratio: int = 300
    """How many times larger than itself a large file of a packed document may become."""
    cell_bytes: int = 1024 * 1024
    """One cell of a table."""
    chunks: int = 100_000
    seconds: float = 120.0
    """From the first byte sent to the last one received."""
    cpu_seconds: int = 90
    memory_bytes: int = 1024 * 1024 * 1024
    """Address space of the process that reads."""


class Refused(Exception):
    """A document is not taken, and why; it becomes `DocumentRefused` outside the process that reads."""

    def __init__(self, why: str, *, limit: str = "") -> None:
        """`why` follows `was refused: `."""
        super().__init__(why)
        self.why = why
        self.limit = limit
