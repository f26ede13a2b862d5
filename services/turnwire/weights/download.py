"""The beginning of a file on disk, which any source may carry on: a prefix, its hash so far, and nothing else."""

from __future__ import annotations

import os
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

    def __enter__(self) -> Self:
        with cache_faults(self._directory, self.file.size):
            self._output = self._part.open("ab")
        try:
            self._written = self._output.tell()
            if self._written > self.file.size:
                self.restart()
            else:
                self._hash = hash_begun(self._part)
        except BaseException:
            self._output.close()
            raise
        self._progress.begin(self.file.name, self.file.size)
        self._progress.reached(self._written)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.end()
        try:
            self._output.close()
        except OSError:
            # The buffer could not be written (a full disk); the error on its way says so already.
            if error is None:
                raise

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
        self._progress.reached(self._written)

    def expect(self, more: int) -> None:
        """Show `more` bytes as under way: a wheel is fetched before what is in it can be written."""
        self._progress.reached(min(self._written + more, self.file.size))

    def restart(self) -> None:
        """Throw away what is there."""
        with cache_faults(self._directory):
            self._output.truncate(0)
            self._output.seek(0)
        self._written = 0
        self._hash = hash_begun(Path(os.devnull))

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
