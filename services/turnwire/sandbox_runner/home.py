"""The folder of a runner on the host, where the users of sandboxes can pass; it goes with the runner."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

from turnwire.sandbox_runner.libraries import reachable

_PREFIX = "turnwire-sandboxes-"
_LOCK = "lock"


class Home:
    """The folder of one runner."""

    def __init__(self, folder: Path, lock: int) -> None:
        """Use `make`."""
        self.folder = folder
        self._lock = lock

    @classmethod
    def make(cls) -> Home:
        """Makes one, and removes those of runners that were killed."""
        # A folder for temporary files may lie in a home that others cannot enter.
        places = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - made safely
        parent = next((place for place in places if reachable(Path(place))), places[0])
        for left in Path(parent).glob(f"{_PREFIX}*"):
            _remove_left(left)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.chmod(0o711)
        return cls(folder, lock)

    def remove(self) -> None:
        """Removes it."""
        remove(self.folder)
        os.close(self._lock)


def remove(folder: Path) -> None:
    """Removes a tree that code has made: it may be deep, and its folders shut."""
    # These two follow no links, and know no deepest level.
    for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf", "--one-file-system"]):
        subprocess.run([*command, "--", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _remove_left(folder: Path) -> None:
    """Removes the folder of a runner of this user that no longer runs: its lock is free."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # one that is being made, or that somebody else removes
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between making the lock and holding it a runner is new: what is empty but for it is left for a while.
        if any(path.name != _LOCK for path in folder.iterdir()):
            remove(folder)
    except OSError:
        return  # it runs
    finally:
        os.close(lock)
