"""The walls of a sandbox, put up by the process that will live in it: user, limits, Landlock, system calls."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from dataclasses import dataclass, field
from typing import Any

from turnwire.sandbox_runner.interior import landlock, seccomp

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Confinement:
    """What a sandbox may have. Travels as JSON from the runner to the process inside."""

    user: int | None
    """The user and group to become; None: stay the user that started it, which is not root."""
    own_files: bool
    """True in a mount namespace: the file system is the sandbox's own, and its processes are the only ones in sight."""
    workspace: str
    scratch: list[str]
    """Folders besides the workspace that may be written."""
    readable: list[str]
    """What may be read and run."""
    listed: list[str]
    """Folders whose names may be listed, and no file of them read."""
    devices: list[str]
    libraries: list[str]
    """What is put on `sys.path`."""
    preload: list[str]
    """Modules that are imported before the first code comes, where there is time."""
    memory_bytes: int
    """The address space of a process."""
    cpu_seconds: int
    """The processor time of a process, over its whole life."""
    processes: int
    """Processes and threads of the user."""
    file_bytes: int
    """The longest file."""
    open_files: int
    workspace_bytes: int
    """All files together."""
    workspace_files: int
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, values: dict[str, Any]) -> Confinement:
        """Returns what was sent."""
        return cls(**values)


def enter(walls: Confinement) -> None:
    """Puts this process behind the walls. There is no way back.

    Raises:
        OSError: a wall cannot be put up; nothing may be run then.
    """
    # When memory runs out, the kernel is to take this one first.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if walls.user is not None:
        _become(walls.user)
    if os.getuid() == 0 or os.geteuid() == 0 or os.getgid() == 0:
        raise PermissionError("model-written code never runs as root")
    # Becoming another user has undone what was asked for before.
    die_with_parent(signal.SIGKILL)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _limit(walls)
    os.chdir(walls.workspace)
    version = landlock.abi()
    # The first process ends all others by one signal to all it may reach: these must be its own.
    if walls.own_files and os.getpid() != 1:
        raise PermissionError("this sandbox has no process numbers of its own")
    if not walls.own_files and version < landlock.NEEDED_ABI:
        raise OSError(f"Landlock has version {version} here; {landlock.NEEDED_ABI} is needed")
    if version >= landlock.NEEDED_ABI or not walls.own_files:
        landlock.restrict(_rules(walls))
    seccomp.install(seccomp.program(own_files=walls.own_files))
    # Nobody looks into the process that keeps the others, but root outside.
    prctl(_PR_SET_DUMPABLE, 0)


def part() -> None:
    """Shuts a started process, and all it starts, off from the one that keeps it."""
    prctl(_PR_SET_DUMPABLE, 1)
    if landlock.abi() >= landlock.NEEDED_ABI:
        landlock.scope()


def adopt() -> None:
    """Makes this process the parent of all below it that lose theirs."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal_number: int) -> None:
    """Gets a signal when the parent ends."""
    prctl(_PR_SET_PDEATHSIG, signal_number)


def prctl(option: int, value: int) -> None:
    """Sets an attribute of this process.

    Raises:
        OSError: the kernel refuses it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    unused = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), unused, unused, unused) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def _become(user: int) -> None:
    if os.getuid() == 0:
        for capability in range(64):
            with contextlib.suppress(OSError):  # the kernel has fewer
                prctl(_PR_CAPBSET_DROP, capability)
    # Above the user: a process that is no longer root cannot.
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _limit(walls: Confinement) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, walls.memory_bytes),
        (resource.RLIMIT_CPU, walls.cpu_seconds),
        (resource.RLIMIT_NPROC, walls.processes),
        (resource.RLIMIT_FSIZE, walls.file_bytes),
        (resource.RLIMIT_NOFILE, walls.open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def _rules(walls: Confinement) -> list[tuple[str, int]]:
    rules = [(path, landlock.READ) for path in walls.readable]
    rules += [(path, landlock.READ_DIR) for path in walls.listed]
    rules += [(path, landlock.WRITE) for path in (walls.workspace, *walls.scratch)]
    rules += [(path, landlock.USE) for path in walls.devices]
    return rules
