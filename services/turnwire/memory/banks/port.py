"""What the memory service asks of a provider: an index, and nothing else.

The service's own database says which documents a bank holds and keeps the text of their chunks. A provider finds. Each
version of a document is an entry under a revision of its own: it is put before the service commits the document, and
removed after another one took its place. So a crash in between leaves an entry that no document names, which is never
shown and removed later; and a provider needs no transaction with the service.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from turnwire.common.v1 import inspect_service_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from turnwire.memory.v1 import document_pb2

State = inspect_service_pb2.Provider.State
Kind = Literal["vector", "keyvalue", "keyword", "graph"]
KINDS: tuple[Kind, ...] = ("vector", "keyvalue", "keyword", "graph")


@dataclass(frozen=True, slots=True)
class Place:
    """A bank, as its provider knows it."""

    uid: str
    """Unlike the bank's id it is never used again."""
    kind: Kind
    dimension: int = 0
    """The length of the vectors; banks of the kind vector only."""
    depth: int = 1
    """How far a found entity's surroundings go; banks of the kind graph only."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a document; what the bank's kind needs of it is set."""

    revision: str
    document_id: str
    labels: tuple[str, ...]
    texts: Sequence[str] = ()
    """The chunks, by number."""
    vectors: Sequence[Sequence[float]] = ()
    """Their vectors, each of length 1."""
    key_value: document_pb2.KeyValue | None = None
    graph: document_pb2.GraphFragment | None = None
    hidden: tuple[str, ...] = ()
    """Revisions that are gone, and only not removed yet."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for."""

    text: str
    limit: int
    vector: Sequence[float] = ()
    labels: tuple[str, ...] = ()
    """All of them have to be there."""
    hidden: tuple[str, ...] = ()
    """Revisions that are not, or no longer, to be seen."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that fits."""

    revision: str
    ordinal: int
    score: float
    """Higher is better: the cosine, or from 0 to 1 how much of the question was found."""
    text: str = ""
    """Set where the text is more than the stored chunk."""


class Provider(Protocol):
    """Keeps the indexes of banks. A provider is one module with one class and one pydantic `Config`.

    Failures are typed errors. Nothing here blocks the event loop.
    """

    provider_id: str
    kinds: frozenset[Kind]

    async def start(self, data_dir: Path) -> None:
        """Begins to load or connect; what it keeps itself lies below `data_dir`."""
        ...

    async def close(self) -> None:
        """Gives everything back."""
        ...

    def state(self) -> tuple[State.ValueType, str]:
        """Returns the state, and why it is so."""
        ...

    async def create(self, place: Place) -> None:
        """Makes the index of a bank; making it again changes nothing."""
        ...

    async def drop(self, place: Place) -> None:
        """Removes the index of a bank, also one that is not there."""
        ...

    async def put(self, place: Place, entry: Entry) -> None:
        """Adds an entry, which is durable when this returns.

        Raises:
            DocumentRefused: it does not go together with what is there.
        """
        ...

    async def remove(self, place: Place, revisions: Sequence[str]) -> None:
        """Removes entries, also such as were put halfway or never."""
        ...

    async def search(self, place: Place, question: Question) -> list[Hit]:
        """Returns what fits, best first; nothing from a bank that was never put anything in."""
        ...


def label(key: str, value: str) -> str:
    """Returns one text for a key and its value that no other pair gives."""
    return json.dumps([key, value], ensure_ascii=False, separators=(",", ":"))


def labels(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the labels of a document, or those that a question asks for."""
    return tuple(label(key, value) for key, value in sorted(metadata.items()))
