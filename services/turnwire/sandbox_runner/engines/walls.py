"""The confinement that both engines ask for, and the environment inside."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from turnwire.sandbox_runner.interior.confinement import Confinement

if TYPE_CHECKING:
    from turnwire.sandbox_runner.engines.port import Site

_OPEN_FILES = 256
_LIFETIMES = 10
"""The processor time of a process over its life, in runs: an interpreter lives through many."""

DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]


def confinement(
    site: Site,
    *,
    user: int | None,
    own_files: bool,
    workspace: str,
    scratch: list[str],
    readable: list[str],
    listed: list[str],
    libraries: list[str],
    processes: int,
) -> str:
    """Returns the confinement of a sandbox as the process inside takes it."""
    limits = site.limits
    walls = Confinement(
        user=user,
        own_files=own_files,
        workspace=workspace,
        scratch=scratch,
        readable=readable,
        listed=listed,
        devices=DEVICES,
        libraries=libraries,
        preload=list(site.preload),
        memory_bytes=limits.memory_bytes,
        cpu_seconds=max(int(limits.cpu_seconds * _LIFETIMES), 1),
        processes=processes,
        file_bytes=limits.workspace_bytes,
        open_files=_OPEN_FILES,
        workspace_bytes=limits.workspace_bytes,
        workspace_files=limits.workspace_files,
        environment=environment(scratch[0]),
    )
    return json.dumps(asdict(walls))


def environment(scratch: str) -> dict[str, str]:
    """Returns all that code finds in its environment; nothing comes from the runner's own."""
    return {
        "HOME": scratch,
        "LANG": "C.UTF-8",
        "MPLBACKEND": "module://turnwire.sandbox_runner.interior.figures",
        "MPLCONFIGDIR": f"{scratch}/matplotlib",
        # Threads of a library count as processes, and each wants a stack of the address space.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": scratch,
        "TZ": "UTC",
    }


def tasks_of(user: int) -> int:
    """Returns how many processes and threads a user has now."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == user:
                    count += len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue  # ended meanwhile
    return count
