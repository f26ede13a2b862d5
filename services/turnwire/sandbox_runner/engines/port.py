"""What an engine gives: a place for a sandbox, with the command that starts its first process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from turnwire.sandbox_runner.libraries import Libraries


class EngineUnusable(Exception):
    """An engine cannot work on this machine; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sandbox may use."""

    memory_bytes: int
    """Address space of a process, and memory of all its processes together."""
    cpu_seconds: float
    """Processor time of a run."""
    processes: int
    workspace_bytes: int
    workspace_files: int


@dataclass(frozen=True, slots=True)
class Site:
    """What all sandboxes of a runner share."""

    folder: Path
    """A folder of the runner, where the users of sandboxes may pass."""
    interior: Path
    libraries: Libraries
    limits: Limits
    preload: tuple[str, ...]


@dataclass(slots=True)
class Place:
    """Room for one sandbox."""

    command: list[str]
    environment: dict[str, str]
    release: Callable[[], None]
    """Gives back what was taken; may block for as long as removing files takes."""
    private_files: bool
    """True when its files lie on no disk of the host."""
    notes: list[str] = field(default_factory=list[str])


class Engine(Protocol):
    """Keeps sandboxes apart from the machine and from each other."""

    name: str

    def prepare(self, site: Site) -> None:
        """Gets ready to make places; may block.

        Raises:
            EngineUnusable: it cannot work here.
        """
        ...

    def place(self) -> Place:
        """Returns room for one sandbox; may block.

        Raises:
            EngineUnusable: there is none.
        """
        ...
