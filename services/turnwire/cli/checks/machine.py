"""The machine: its Python, its disks, its ports, its namespaces."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from turnwire.cli.checks.finding import Finding
from turnwire.cli.processes import port_holder
from turnwire.cli.services import SERVICES, edge
from turnwire.runtime.settings.models import HEALTH_OFFSET, METRICS_OFFSET
from turnwire.weights import MODELS, cache_directory, in_bytes
from turnwire.weights.store import status_of

if TYPE_CHECKING:
    from turnwire.runtime.settings import Settings

OLDEST_PYTHON = (3, 11)
_TESTED = ("Linux", "x86_64")
# SQLite writes its log before it says anything: with less than this the next commits fail.
_LEAST_DATA_BYTES = 64_000_000
_SPARE_DATA_BYTES = 1_000_000_000
_UNSHARE = """
import ctypes, sys
library = ctypes.CDLL(None, use_errno=True)
sys.exit(0 if library.unshare(0x10000000 | 0x00020000) == 0 else ctypes.get_errno())
"""
"""A new user namespace with a new mount namespace, in a process that ends with it."""
_KNOBS = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
"""What the kernels of distributions have to forbid namespaces, the value that does, and the command against it."""


def python(version: tuple[int, int] | None = None) -> Finding:
    """Checks that this Python is one that Turnwire runs on."""
    found = version or sys.version_info[:2]
    told = ".".join(str(part) for part in found)
    if found < OLDEST_PYTHON:
        return Finding(
            "python",
            "problem",
            f"this is Python {told} ({sys.executable}), and Turnwire needs 3.11 or newer",
            "install a newer Python and make the environment with it; `TURNWIRE_PYTHON` tells `./dev` which one",
        )
    machine = (platform.system(), platform.machine())
    if machine != _TESTED:
        return Finding("python", "note", f"Python {told} on {' '.join(machine)}: only Linux x86_64 is tested")
    return Finding("python", "ok", f"Python {told} on {' '.join(machine)}")


def data_disk(settings: Settings) -> Finding:
    """Checks that the data directory can be written and its disk has room."""
    folder = _existing(settings.data_dir)
    if not os.access(folder, os.W_OK):
        return Finding(
            "data directory",
            "problem",
            f"{settings.data_dir} cannot be written by this user",
            f"make {folder.resolve()} writable, or name another folder with `--data-dir`",
        )
    free, files = _room(folder)
    if free < _LEAST_DATA_BYTES or files == 0:
        what = f"only {in_bytes(free)} free" if files else "no file can be added (its inodes are used up)"
        return Finding(
            "data directory",
            "problem",
            f"the disk of {settings.data_dir} is full: {what}",
            "free some space, or name a folder on another disk with `--data-dir`",
        )
    if free < _SPARE_DATA_BYTES:
        return Finding(
            "data directory", "note", f"the disk of {settings.data_dir} is nearly full: {in_bytes(free)} free"
        )
    return Finding("data directory", "ok", f"{settings.data_dir}, {in_bytes(free)} free")


def weights_disk(names: list[str]) -> Finding:
    """Checks that what is missing of the weights of `names` fits on the disk of the weight cache."""
    cache = cache_directory()
    free = shutil.disk_usage(_existing(cache)).free
    missing = 0
    for model in MODELS:
        if model.name in names:
            missing += sum(file.size - file.have for file in status_of(model).files if not file.ready)
    if missing > free:
        return Finding(
            "weights disk",
            "problem",
            f"the disk of {cache} is too full for the weights: {in_bytes(missing)} are missing, {in_bytes(free)} free",
            "free some space, or point TURNWIRE_WEIGHTS_DIR at a larger disk",
        )
    return Finding("weights disk", "ok", f"{cache}, {in_bytes(free)} free")


def ports(settings: Settings) -> Finding:
    """Checks that nothing else listens on the ports of the services."""
    taken: list[str] = []
    for name in (*SERVICES, *edge()):
        for offset in (0, HEALTH_OFFSET, METRICS_OFFSET):
            port = settings.port(name) + offset
            why = refusal(settings.listen.host, port)
            if why:
                taken.append(f"port {port} of {name} {why}")
    if not taken:
        first, last = settings.port("agent"), settings.port("sandbox_runner") + METRICS_OFFSET
        return Finding("ports", "ok", f"those between {first} and {last} that the mesh takes are free")
    return Finding(
        "ports", "problem", "; ".join(taken), "stop what uses them, or move all ports with `--port-offset 1000`"
    )


def refusal(host: str, port: int) -> str:
    """Returns why a port cannot be bound, with the process that has it where one can know; empty when it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            holder = port_holder(port)
            return f"is taken by {holder}" if holder else f"cannot be bound ({error.strerror})"
    return ""


def user_namespaces() -> Finding:
    """Checks, by making one, that user namespaces can be made: sandboxes will need them."""
    if not sys.platform.startswith("linux"):
        return Finding("user namespaces", "note", "only Linux has them")
    ended = subprocess.run([sys.executable, "-c", _UNSHARE], capture_output=True, check=False)
    if ended.returncode == 0:
        return Finding("user namespaces", "ok", "can be made")
    why = os.strerror(ended.returncode) if ended.returncode > 0 else f"signal {-ended.returncode}"
    remedies = [remedy for path, forbidding, remedy in _KNOBS if _value(path) == forbidding]
    todo = f"as root: {'; '.join(remedies)}" if remedies else "in a container: allow them in its seccomp profile"
    return Finding(
        "user namespaces",
        "note",
        f"cannot be made ({why}): without them code is run only where Landlock can hold it (Linux 6.12 or newer)",
        todo,
    )


def _value(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _existing(folder: Path) -> Path:
    """Returns the folder, or the nearest one above it that is there."""
    absolute = folder.absolute()
    return next((each for each in (absolute, *absolute.parents) if each.is_dir()), Path("/"))


def _room(folder: Path) -> tuple[int, int]:
    """Returns the free bytes and the free files of a folder's disk; -1 files where a disk does not count them."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else -1
