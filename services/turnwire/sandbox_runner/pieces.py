"""What a run gives back, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["completed", "raised", "time", "cpu", "memory", "full", "died"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of output, whole characters."""

    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A piece of a file that was made or changed."""

    path: str
    offset: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Removed:
    """A file is gone."""

    path: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file was made or changed, and is not given back."""

    path: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the model has to know."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended."""

    ending: Ending
    value: str = ""
    error: str = ""


Piece = Text | FilePiece | Removed | LeftOut | Notice | Finished


@dataclass(frozen=True, slots=True)
class Returned:
    """How much a run may give back."""

    output_bytes: int
    file_bytes: int
    file_count: int
