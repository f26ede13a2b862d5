"""What is in the cache: locate finds a model's weights, status lists them, verify reads them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turnwire.weights.cache import PRECISIONS, CachedFile, Precision, cached_file, cached_graph, hash_of
from turnwire.weights.errors import WeightsMissing
from turnwire.weights.manifest import Model, model_named, models_named
from turnwire.weights.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What the cache holds of one file."""

    name: str
    path: Path
    size: int
    have: int  # bytes there, of a whole file or of its beginning
    ready: bool


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the cache holds of one model."""

    model: Model
    files: tuple[FileStatus, ...]
    ready: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What reading a file again showed."""

    model: Model
    path: Path
    sound: bool
    text: str


def locate(name: str, file: str | None = None, *, precision: Precision = "int8") -> Path:
    """The path of a model's weights that are whole and checked; never downloads.

    Without `file` it is what a service loads: the only file of a language model, the ONNX graph of an encoder in the
    given `precision`. `WeightsMissing` names the command that gets what is not there.
    """
    model = model_named(name)
    options = ""
    if file is None and model.encoder is not None:
        cached = cached_graph(model, precision)
        wanted = None
        options = "" if precision == "int8" else f" --precision {precision}"
    else:
        weights = model.files[0] if file is None else model.file(file)
        cached = cached_file(model, weights)
        wanted = weights.sha256
    if not cached.checked(wanted):
        why = "has not been checked since it was put there" if cached.path.exists() else "is not there"
        raise WeightsMissing(model, cached.path, why, options)
    return cached.path


def status(names: Sequence[str] | None = None) -> tuple[ModelStatus, ...]:
    """What the cache holds of the named models, or of all there are; reads no weights."""
    return tuple(status_of(model) for model in models_named(names))


def verify(names: Sequence[str] | None = None, progress: Progress | None = None) -> tuple[Finding, ...]:
    """Read the cached files of the named models again, or of all there are; what does not fit is removed."""
    progress = progress or Silent()
    findings: list[Finding] = []
    for model in models_named(names):
        expected = [(cached_file(model, file), file.sha256) for file in model.files]
        graphs = [cached_graph(model, precision) for precision in PRECISIONS] if model.encoder else []
        expected += [(graph, graph.recorded_hash() or "") for graph in graphs]
        findings += [_verify(model, cached, sha256, progress) for cached, sha256 in expected if cached.path.exists()]
    return tuple(findings)


def _verify(model: Model, cached: CachedFile, sha256: str, progress: Progress) -> Finding:
    progress.begin(cached.path.name, cached.path.stat().st_size)
    found = hash_of(cached.path, progress.reached)
    progress.end()
    if found == sha256:
        if not cached.checked(sha256):
            cached.record(sha256)
        return Finding(model, cached.path, True, "sound")
    cached.remove()
    return Finding(
        model,
        cached.path,
        False,
        f"its sha256 is {found[:12]}…, not {sha256[:12]}…; it was removed. Run `turnwire models pull {model.name}`.",
    )


def status_of(model: Model) -> ModelStatus:
    """What the cache holds of one model."""
    files: list[FileStatus] = []
    for file in model.files:
        cached = cached_file(model, file)
        have = next((path.stat().st_size for path in (cached.path, cached.part) if path.exists()), 0)
        files.append(FileStatus(file.name, cached.path, file.size, have, cached.checked(file.sha256)))
    ready = all(file.ready for file in files)
    if model.encoder is not None:
        graphs = [cached_graph(model, precision) for precision in PRECISIONS]
        built = [graph for graph in graphs if graph.checked()]
        ready = ready and bool(built)
        for graph in built:
            size = graph.path.stat().st_size
            files.append(FileStatus(graph.path.name, graph.path, size, size, True))
    return ModelStatus(model, tuple(files), ready)
