"""Tensors out of a .safetensors file, mapped and not copied."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turnwire.weights.errors import BuildFailed

_TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I64": np.int64, "I32": np.int32}
# The largest header there is in practice is far below this; a wild length must not become a wild read.
_LONGEST_HEADER = 100_000_000


def read_tensors(path: Path) -> dict[str, NDArray[np.generic]]:
    """Each tensor of the file by its name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise BuildFailed(f"{path} is no safetensors file")
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise BuildFailed(f"{path}: tensor {name} has the type {entry['dtype']}, which is not read here")
        start, end = entry["data_offsets"]
        tensors[name] = data[start:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors
