"""What can go wrong with weights, each with a message that says what happened, where, and what to do next.

    WeightsError
    ├── UnknownModel        the manifest has no model or file of that name
    ├── WeightsMissing      a service asked for weights that nobody has pulled
    ├── CacheUnusable       the cache folder cannot be written
    │   └── DiskFull        the disk of the cache has no room
    ├── PullFailed          every source was tried and none gave the right bytes
    │   └── SourceFailed    one source did not (a pull goes on to the next one)
    │       └── WrongBytes  a source gave bytes whose hash is not the pinned one
    └── BuildFailed         the ONNX graph could not be written from the weights

The tree stands apart from `turnwire.errors` because set-up pulls weights before gRPC is installed.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from turnwire.weights.progress import in_bytes

if TYPE_CHECKING:
    from turnwire.weights.manifest import Model


class WeightsError(Exception):
    """Anything that keeps a model's weights from being there."""


class UnknownModel(WeightsError):
    """The manifest has no such model, file or precision."""

    def __init__(self, kind: str, name: str, available: Sequence[str]) -> None:
        self.name = name
        self.available = tuple(available)
        super().__init__(f"no {kind} is called {name!r}; there is: {', '.join(self.available)}")


class WeightsMissing(WeightsError):
    """A service needs weights that are not in the cache; services never download."""

    def __init__(self, model: Model, path: Path, why: str, options: str = "") -> None:
        self.model = model.name
        self.path = path
        super().__init__(
            f"the weights of {model.name} are not ready: {path} {why}. "
            f"Run `turnwire models pull {model.name}{options}`."
        )


class CacheUnusable(WeightsError):
    """The cache folder cannot be written by this user."""


class DiskFull(CacheUnusable):
    """The disk that holds the cache has no room for what is being written."""

    def __init__(self, directory: Path, needed: int | None, free: int | None) -> None:
        need = "" if needed is None else f" {in_bytes(needed)} more is needed"
        have = "" if free is None else f", {in_bytes(free)} is free"
        super().__init__(
            f"no room on the disk of {directory}:{need}{have}. Free some space, or point TURNWIRE_WEIGHTS_DIR at a "
            "larger disk, and pull again; what was fetched so far is kept and the pull goes on from there."
        )


class PullFailed(WeightsError):
    """No source gave the file; the message lists what each of them answered."""


class SourceFailed(PullFailed):
    """One source did not give the file."""

    def __init__(self, source: str, why: str) -> None:
        self.source = source
        self.why = why
        super().__init__(f"{source}: {why}")


class WrongBytes(SourceFailed):
    """A source gave a file whose hash is not the pinned one; the bytes were removed."""


class BuildFailed(WeightsError):
    """The ONNX graph could not be written from the weights."""


@contextmanager
def cache_faults(directory: Path, needed: int | None = None) -> Generator[None]:
    """Turn the operating system's refusals to write into errors that say what to do about them."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(directory, needed, None) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CacheUnusable(
                f"cannot write to the weight cache: {error}. Make {directory} writable, or point TURNWIRE_WEIGHTS_DIR "
                "at a folder that is."
            ) from error
        raise
