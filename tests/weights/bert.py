"""A BERT-like encoder in plain numpy, slow and plain: what the ONNX graph must agree with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnwire.weights.manifest import Encoder

Tensors = Mapping[str, NDArray[Any]]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def embeddings(tensors: Tensors, encoder: Encoder, ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    """The embedding of each row of `ids`, one token at a time where that is plainer."""
    return np.stack([_one(tensors, encoder, row[kept == 1]) for row, kept in zip(ids, mask, strict=True)])


def _one(tensors: Tensors, encoder: Encoder, ids: NDArray[Any]) -> NDArray[Any]:
    # A row is computed without its padding, so the graph's mask is tested and not copied.
    hidden = (
        tensors["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        + tensors["embeddings.position_embeddings.weight"][: len(ids)]
        + tensors["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = _norm(tensors, encoder, "embeddings.LayerNorm", hidden)
    layer = 0
    while f"encoder.layer.{layer}.attention.self.query.weight" in tensors:
        prefix = f"encoder.layer.{layer}"
        attended = _dense(tensors, f"{prefix}.attention.output.dense", _attention(tensors, encoder, prefix, hidden))
        hidden = _norm(tensors, encoder, f"{prefix}.attention.output.LayerNorm", hidden + attended)
        raised = _dense(tensors, f"{prefix}.intermediate.dense", hidden)
        raised = raised * 0.5 * (1 + _erf(raised / math.sqrt(2)))
        hidden = _norm(
            tensors, encoder, f"{prefix}.output.LayerNorm", hidden + _dense(tensors, f"{prefix}.output.dense", raised)
        )
        layer += 1
    mean = hidden.mean(axis=0)
    return mean / np.linalg.norm(mean)


def _attention(tensors: Tensors, encoder: Encoder, prefix: str, hidden: NDArray[Any]) -> NDArray[Any]:
    query, key, value = (
        _dense(tensors, f"{prefix}.attention.self.{which}", hidden) for which in ("query", "key", "value")
    )
    size = hidden.shape[1] // encoder.heads
    mixed: list[NDArray[Any]] = []
    for head in range(encoder.heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(shares / shares.sum(axis=1, keepdims=True) @ value[:, part])
    return np.concatenate(mixed, axis=1)


def _dense(tensors: Tensors, prefix: str, values: NDArray[Any]) -> NDArray[Any]:
    return values @ tensors[f"{prefix}.weight"].T.astype(np.float64) + tensors[f"{prefix}.bias"]


def _norm(tensors: Tensors, encoder: Encoder, prefix: str, values: NDArray[Any]) -> NDArray[Any]:
    centred = values - values.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + encoder.layer_norm_epsilon)
    return scaled * tensors[f"{prefix}.weight"] + tensors[f"{prefix}.bias"]


def random_tensors(hidden: int, layers: int, words: int, positions: int, seed: int = 3) -> dict[str, NDArray[Any]]:
    """Weights of an encoder that nobody trained."""
    generator = np.random.default_rng(seed)

    def some(*shape: int) -> NDArray[Any]:
        return generator.normal(0, 0.2, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": some(words, hidden),
        "embeddings.position_embeddings.weight": some(positions, hidden),
        "embeddings.token_type_embeddings.weight": some(2, hidden),
    }

    def norm(prefix: str) -> None:
        tensors[f"{prefix}.weight"] = 1 + some(hidden)
        tensors[f"{prefix}.bias"] = some(hidden)

    def dense(prefix: str, outputs: int, inputs: int) -> None:
        tensors[f"{prefix}.weight"] = some(outputs, inputs)
        tensors[f"{prefix}.bias"] = some(outputs)

    norm("embeddings.LayerNorm")
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        for which in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{prefix}.attention.{which}", hidden, hidden)
        norm(f"{prefix}.attention.output.LayerNorm")
        dense(f"{prefix}.intermediate.dense", 4 * hidden, hidden)
        dense(f"{prefix}.output.dense", hidden, 4 * hidden)
        norm(f"{prefix}.output.LayerNorm")
    return tensors


def safetensors_of(tensors: Tensors) -> bytes:
    """The bytes of a .safetensors file of these tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + tensor.nbytes],
        }
        body += tensor.tobytes()
    encoded = json.dumps(header).encode()
    # Padded, as writers do, so that the data is aligned.
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + body
