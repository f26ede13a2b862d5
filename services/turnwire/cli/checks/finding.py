"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing is, and what to do about it.

    A `problem` keeps the mesh, or a part of it, from working; a `note` does not.
    """

    check: str
    state: State
    said: str
    todo: str = ""
