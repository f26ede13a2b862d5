"""The processes of a sandbox as the host sees them: what they use, and which of them are left over."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")
_END_SECONDS = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Usage:
    """What the processes below one use together."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    processes: int = 0
    """Threads count too."""
    unlinked_bytes: int = 0
    """Files that have no name any more, and are held open."""


def below(root: int) -> list[int]:
    """Returns the processes below one, those nearer first; it follows every thread's children."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        process = waiting.pop(0)
        for child in children(process):
            found.append(child)
            waiting.append(child)
    return found


def children(process: int) -> list[int]:
    """Returns the children of a process."""
    found: list[int] = []
    folder = f"/proc/{process}/task"
    # A process may end while it is looked at.
    with suppress(OSError):
        for thread in os.listdir(folder):
            with open(f"{folder}/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
    return found


def usage(root: int, *, shared_bytes: int, unlinked: bool) -> Usage:
    """Returns what the processes below `root` use; `shared_bytes` of each is what they got from their parent.

    `unlinked`: whether to look for files that are held open without a name.
    """
    total = Usage()
    for process in below(root):
        with suppress(OSError, ValueError, IndexError):
            fields = _fields(process)
            total.processes += int(fields[17])
            total.cpu_seconds += sum(int(field) for field in fields[11:15]) / _TICKS
            resident = int(fields[21]) * _PAGE
            total.memory_bytes += max(resident - shared_bytes, 0)
            if unlinked:
                total.unlinked_bytes += _unlinked(process)
    return total


def resident(process: int) -> int:
    """Returns how much memory a process has."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def end(keep: set[int], root: int) -> bool:
    """Kills what is below a process but `keep`, which are stopped and start nothing; True when something was.

    Raises:
        TimeoutError: something does not end.
    """
    deadline = time.monotonic() + _END_SECONDS
    any_found = False
    while found := [process for process in below(root) if process not in keep and lives(process)]:
        any_found = True
        for process in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(found)} processes do not end")
        time.sleep(0.002)
    return any_found


def kill_children(process: int) -> None:
    """Kills the children of a process."""
    for child in children(process):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)


def _fields(process: int) -> list[str]:
    """The state of a process and what follows it."""
    with open(f"/proc/{process}/stat") as file:
        # The name of a program may hold anything, parentheses too.
        return file.read().rpartition(")")[2].split()


def lives(process: int) -> bool:
    """False for the dead: they stay in sight until their parent, stopped now, asks for them."""
    with suppress(OSError, IndexError):
        return _fields(process)[0] not in {"Z", "X"}
    return False


def _unlinked(process: int) -> int:
    size = 0
    folder = f"/proc/{process}/fd"
    for name in os.listdir(folder):
        with suppress(OSError):
            status = os.stat(f"{folder}/{name}")
            if status.st_nlink == 0:
                size += status.st_blocks * 512
    return size
