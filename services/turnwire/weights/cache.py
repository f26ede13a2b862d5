"""The folder that holds weights, shared by every checkout of this user.

`<cache>/<model>/<file>` is a whole file; `<file>.part` is a beginning of it, whatever source it came from; a stamp
beside it records that the hash was checked, so that nobody reads half a gigabyte again to know it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from turnwire.weights.errors import cache_faults
from turnwire.weights.manifest import Model, WeightFile

BLOCK = 1 << 20

Precision = Literal["int8", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("int8", "fp32")

# A new number makes every cache build its graphs again: raise it whenever the graph that is written changes.
GRAPH_BUILD = 1


def cache_directory() -> Path:
    """`TURNWIRE_WEIGHTS_DIR`, else `turnwire/weights` in the user's cache folder."""
    if chosen := os.environ.get("TURNWIRE_WEIGHTS_DIR"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "turnwire" / "weights"
    return Path.home() / ".cache" / "turnwire" / "weights"


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file of the cache: whole and checked, whole and not checked, begun, or absent."""

    path: Path

    @property
    def part(self) -> Path:
        """Where the file's beginning grows until it is whole."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def stamp(self) -> Path:
        """Where it is recorded that the hash fitted."""
        return self.path.with_name(f".{self.path.name}.checked")

    def checked(self, sha256: str | None = None) -> bool:
        """Whether the file is as it was when its hash was last checked (and that hash was `sha256`)."""
        try:
            stat = self.path.stat()
            stamp = json.loads(self.stamp.read_bytes())
        except (OSError, ValueError):
            return False
        # Whole seconds: image layers and archives keep no finer time.
        seen = {"sha256": sha256 or stamp.get("sha256"), "size": stat.st_size, "modified": int(stat.st_mtime)}
        return stamp == seen

    def record(self, sha256: str) -> None:
        """Write down that the file's hash is `sha256`."""
        stat = self.path.stat()
        stamp = {"sha256": sha256, "size": stat.st_size, "modified": int(stat.st_mtime)}
        fresh = self.stamp.with_name(f"{self.stamp.name}.{os.getpid()}")
        with cache_faults(self.path.parent):
            fresh.write_text(json.dumps(stamp))
            fresh.replace(self.stamp)

    def recorded_hash(self) -> str | None:
        """The hash in the stamp, or None without one."""
        try:
            return str(json.loads(self.stamp.read_bytes())["sha256"])
        except (OSError, ValueError, KeyError):
            return None

    def keep(self, written: Path, sha256: str) -> None:
        """Put the checked file `written` in place: whole or not at all, even if the power goes."""
        with cache_faults(self.path.parent):
            with written.open("rb") as file:
                os.fsync(file.fileno())
            self.stamp.unlink(missing_ok=True)
            written.replace(self.path)
        self.record(sha256)

    def remove(self) -> None:
        """Forget the file and its stamp."""
        with cache_faults(self.path.parent):
            self.stamp.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def cached_file(model: Model, file: WeightFile) -> CachedFile:
    """Where a file of a model lies, or will."""
    return CachedFile(cache_directory() / model.name / file.name)


def cached_graph(model: Model, precision: Precision) -> CachedFile:
    """Where the ONNX graph of an encoder lies, named for the weights and the builder it came from."""
    source = model.files[0].sha256[:12]
    return CachedFile(cache_directory() / model.name / f"{model.name}-{precision}-{source}-build{GRAPH_BUILD}.onnx")


def hash_of(path: Path, on_progress: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file, in hexadecimal."""
    return hash_begun(path, on_progress).hexdigest()


def hash_begun(path: Path, on_progress: Callable[[int], None] | None = None) -> hashlib._Hash:  # pyright: ignore[reportPrivateUsage] - hashlib has no public name for the type
    """A sha256 that has read the whole of `path` and can read on."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            if on_progress is not None:
                on_progress(done)
    return digest


def make_directory(directory: Path) -> None:
    """Make `directory`, or say why it cannot be."""
    with cache_faults(directory):
        directory.mkdir(parents=True, exist_ok=True)


@contextmanager
def only_one(directory: Path, on_wait: Callable[[], None]) -> Generator[None]:
    """Hold a model's folder: processes that pull the same model take turns, and a dead one's turn is over."""
    make_directory(directory)
    with cache_faults(directory):
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
