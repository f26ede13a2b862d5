"""Processes that tests look at from outside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from turnwire.cli.supervision import process_start

if TYPE_CHECKING:
    from pathlib import Path


def pid_in(file: Path) -> int:
    """Returns the process id that a script writes into a file, once it has."""
    while not file.exists() or not file.read_text().strip():
        time.sleep(0.02)
    return int(file.read_text())


def has_ended(pid: int) -> bool:
    """Returns True once a process has ended, False when it has not within 10 s: a kill takes effect a moment later."""
    deadline = time.monotonic() + 10
    while process_start(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
