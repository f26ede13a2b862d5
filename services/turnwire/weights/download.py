"""The beginning of a file on disk, which any source may carry on: a prefix, its hash so far, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

from turnwire.weights.cache import CachedFile, cache_faults, hash_begun
from turnwire.weights.errors import SourceFailed, WrongBytes
from turnwire.weights.manifest import WeightFile
from turnwire.weights.progress import Progress


class Download:
    """A file on its way into the cache."""

    def __init__(self, file: WeightFile, cached: CachedFile, progress: Progress) -> None:
        self.file = file
        self._cached = cached
        self._progress = progress
        self._part = cached.part
        self._written = 0
        self._shown = 0

    def __enter__(self) -> Self:
        with cache_faults(self._directory, self.file.size):
            self._output = self._part.open("ab")
        self._progress.begin(self.file.name, self.file.size)
        try:
            self._written = self._output.tell()
            if self._written > self.file.size:
                self.restart()
            else:
                self._hash = hash_begun(self._part)
                self._show(self._written)
        except BaseException:
            self._output.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.end()
        try:
            self._output.close()
        except OSError:
            # The buffer could not be written (a full disk); the error on its way says so already.
            if error is None:
                raise
        if not self._written:
            self._part.unlink(missing_ok=True)

    @property
    def _directory(self) -> Path:
        return self._part.parent

    @property
    def offset(self) -> int:
        """How many bytes are there: the next byte wanted."""
        return self._written

    @property
    def missing(self) -> int:
        """How many bytes are not there yet."""
        return self.file.size - self._written

    def write(self, block: bytes, source: str) -> None:
        """Add the next bytes; a source that gives more than the file holds is refused."""
        if len(block) > self.missing:
            self.restart()
            raise WrongBytes(source, f"sent more than the {self.file.size} bytes that {self.file.name} has")
        with cache_faults(self._directory, self.missing):
            self._output.write(block)
        self._hash.update(block)
        self._written += len(block)
        self._show(self._written)

    def expect(self, more: int) -> None:
        """Show `more` bytes as under way: a wheel is fetched before what is in it can be written."""
        self._show(min(self._written + more, self.file.size))

    def _show(self, done: int) -> None:
        # A wheel's bytes are shown as they come, and what they hold again as it is written: not twice.
        if done > self._shown or not done:
            self._shown = done
            self._progress.reached(done)

    def restart(self) -> None:
        """Throw away what is there."""
        with cache_faults(self._directory):
            self._output.truncate(0)
            self._output.seek(0)
        self._written = 0
        self._hash = hashlib.sha256()
        self._show(0)

    def finish(self, source: str) -> None:
        """Check the hash and put the file in place; bytes that do not fit are removed and WrongBytes raised."""
        if self.missing:
            raise SourceFailed(source, f"ended {self.missing} bytes short of {self.file.size}")
        with cache_faults(self._directory):
            self._output.flush()
        found = self._hash.hexdigest()
        if found != self.file.sha256:
            self.restart()
            raise WrongBytes(
                source,
                f"sent a {self.file.name} with sha256 {found[:12]}… where {self.file.sha256[:12]}… is pinned; "
                "the bytes were removed",
            )
        self._cached.keep(self._part, self.file.sha256)
