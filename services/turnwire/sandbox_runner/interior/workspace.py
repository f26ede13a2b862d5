"""The files of a workspace, read by the sandbox itself: whatever a name leads to, it is none of the host's."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from dataclasses import dataclass, field

_DEEPEST = 32
_LONGEST_PATH = 1024


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a file has changed; the code cannot set a change time back."""

    inode: int
    size: int
    modified: int
    changed: int


@dataclass(slots=True)
class Survey:
    """What lies in a workspace."""

    files: dict[str, Stamp] = field(default_factory=dict[str, Stamp])
    size: int = 0
    """Bytes on the disk."""
    count: int = 0
    """Files, folders and all else."""
    odd: int = 0
    """Entries that are no plain files or folders, or whose names cannot travel."""


def survey(folder: str, most: int) -> Survey:
    """Returns what lies in a folder; stops counting beyond `most` entries."""
    found = Survey()
    waiting = [("", 0)]
    while waiting and found.count <= most:
        below, depth = waiting.pop()
        try:
            entries = list(_entries(os.path.join(folder, below) if below else folder, most + 1 - found.count))
        except OSError:
            continue  # the code has taken its own rights away
        for name, status in entries:
            path = f"{below}/{name}" if below else name
            found.count += 1
            found.size += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                if depth < _DEEPEST:
                    waiting.append((path, depth + 1))
                else:
                    found.odd += 1
            elif stat.S_ISREG(status.st_mode) and can_travel(path):
                found.files[path] = Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            else:
                found.odd += 1
    return found


def _entries(folder: str, most: int) -> Generator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for index, entry in enumerate(entries):
            if index >= most:
                return
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone meanwhile


def can_travel(path: str) -> bool:
    """True for a name that means the same file everywhere: relative, printable, no step upwards."""
    if not path or len(path.encode("utf-8", "surrogateescape")) > _LONGEST_PATH:
        return False
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and all(part not in {"", ".", ".."} for part in parts)


def pieces(folder: str, path: str, size: int, piece: int) -> Generator[tuple[int, bytes]]:
    """Gives a plain file in pieces with where they begin, at most `size` bytes; nothing for what is no plain file."""
    # Without waiting for the other end of a pipe, and through no link.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(os.path.join(folder, path), flags)
    except OSError:
        return
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return
        offset = 0
        while True:
            data = os.pread(file, min(piece, size - offset), offset)
            yield offset, data
            offset += len(data)
            if not data or offset >= size:
                return
    finally:
        os.close(file)


def write(folder: str, path: str, offset: int, data: bytes) -> None:
    """Writes a piece of a file that the caller has sent; at its beginning the file is made anew.

    Raises:
        OSError: it cannot be written.
    """
    if not can_travel(path):
        raise PermissionError(f"{path!r} is no name for a file")
    place = os.path.join(folder, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if offset == 0 and os.path.lexists(place):
        os.unlink(place)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(place, flags, 0o644)
    try:
        view = memoryview(data)
        while view:
            done = os.pwrite(file, view, offset)
            offset += done
            view = view[done:]
    finally:
        os.close(file)
