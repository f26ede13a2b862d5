"""What keeps the process that reads documents small and alone; each wall is put up by the process itself."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import TYPE_CHECKING

from turnwire.memory.documents import landlock, seccomp

if TYPE_CHECKING:
    from turnwire.memory.documents.document import Limits

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_OPEN_FILES = 64


def limit(limits: Limits) -> None:
    """Bounds memory, files and children, and ends this process with the one that started it."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel was told.
        raise SystemExit(1)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    # Nothing is written but to pipes, and nothing is left of a crash: it would hold the document.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_seconds(seconds: int) -> None:
    """Gives the next document so much of the processor; the kernel ends this process when it is used up."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


def confine() -> list[str]:
    """Takes away files, the network and other programs, as far as this kernel lets it; returns what was put up."""
    put_up = ["limits"]
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for name, wall in (("landlock", landlock.restrict), ("seccomp", seccomp.restrict)):
        try:
            wall()
        except OSError:
            # An old kernel, or one that was told to have no such thing; the others hold.
            continue
        put_up.append(name)
    return put_up


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
