"""The ONNX graph of a BERT-like sentence encoder, written from its weights at set-up.

Inputs `input_ids` and `attention_mask` (int64, batch by tokens); output `embedding` (float32, batch by hidden): the
mean of the token vectors under the mask, of length one. Token types are always zero in sentence encoders, so their
vector is part of the position table.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnwire.weights.cache import GRAPH_BUILD, CachedFile, Precision, cache_faults, hash_of
from turnwire.weights.errors import BuildFailed
from turnwire.weights.manifest import Encoder, Model
from turnwire.weights.safetensors import read_tensors

OPSET = 20

Tensors = Mapping[str, NDArray[Any]]


def build_graph(model: Model, encoder: Encoder, source: Path, target: CachedFile, precision: Precision) -> None:
    """Write the graph of `source` to `target`, whole or not at all."""
    try:
        onnx = _module("onnx")
    except ImportError as error:
        raise BuildFailed(
            f"writing the ONNX graph of {model.name} needs the onnx and onnxruntime packages ({error}); install them "
            f"(the inference extra has them) and run `turnwire models pull {model.name}` again."
        ) from error
    metadata = {
        "turnwire.source_sha256": model.files[0].sha256,
        "turnwire.build": str(GRAPH_BUILD),
        "turnwire.precision": precision,
        "turnwire.max_tokens": str(encoder.max_tokens),
    }
    graph = encoder_graph(read_tensors(source), encoder, metadata)
    with (
        cache_faults(target.path.parent),
        tempfile.TemporaryDirectory(prefix=".graph-", dir=target.path.parent) as folder,
    ):
        written = Path(folder) / "fp32.onnx"
        onnx.save(graph, str(written))
        if precision == "int8":
            written = quantised(written, Path(folder) / "int8.onnx", metadata)
        target.keep(written, hash_of(written))


def quantised(source: Path, target: Path, metadata: Mapping[str, str]) -> Path:
    """Write `source` with 8-bit weights to `target`."""
    onnx = _module("onnx")
    quantization = _module("onnxruntime.quantization")
    with _quiet():
        # Seven bits a weight, a scale a channel: the products then fit the 16-bit sums of processors without VNNI, and
        # cosines stay nearer to fp32 than eight bits with one scale (all four ways were measured; speed is the same).
        quantization.quantize_dynamic(
            source, target, per_channel=True, reduce_range=True, weight_type=quantization.QuantType.QInt8
        )
    # The quantiser keeps the graph's metadata out of what it writes.
    graph = onnx.load(str(target))
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.save(graph, str(target))
    return target


def _module(name: str) -> Any:
    # Neither package is typed well enough for strict checking, and neither may be imported on the warm path.
    return importlib.import_module(name)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    # The quantiser advises, on the root logger, a preparation that fixed shapes would need and these graphs do not.
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def encoder_graph(tensors: Tensors, encoder: Encoder, metadata: Mapping[str, str]) -> Any:
    """The ONNX model of the encoder's tensors."""
    return _Writer(tensors, encoder).model(metadata)


class _Writer:
    def __init__(self, tensors: Tensors, encoder: Encoder) -> None:
        self._tensors = tensors
        self._encoder = encoder
        self._onnx = _module("onnx")
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._hidden = int(self._tensor("embeddings.word_embeddings.weight").shape[1])
        if self._hidden % encoder.heads:
            raise BuildFailed(f"{encoder.heads} heads do not divide a hidden size of {self._hidden}")

    def model(self, metadata: Mapping[str, str]) -> Any:
        helper = self._onnx.helper
        types = self._onnx.TensorProto
        hidden = self._embeddings()
        bias = self._mask_bias()
        layers = 0
        while f"encoder.layer.{layers}.attention.self.query.weight" in self._tensors:
            hidden = self._layer(f"encoder.layer.{layers}", hidden, bias)
            layers += 1
        self._pool(hidden, "embedding")
        integers = ["input_ids", "attention_mask"]
        graph = helper.make_graph(
            self._nodes,
            "sentence_encoder",
            [helper.make_tensor_value_info(name, types.INT64, ["batch", "tokens"]) for name in integers],
            [helper.make_tensor_value_info("embedding", types.FLOAT, ["batch", self._hidden])],
            initializer=list(self._constants.values()),
        )
        # The oldest format version that knows the operator set: readers older than this writer can load it.
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9, producer_name="turnwire"
        )
        helper.set_model_props(model, dict(metadata))
        self._onnx.checker.check_model(model)
        return model

    def _tensor(self, name: str) -> NDArray[Any]:
        try:
            return self._tensors[name]
        except KeyError:
            raise BuildFailed(f"the weights hold no tensor {name}: not a BERT-like encoder") from None

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _integers(self, *values: int) -> str:
        return self._constant("ints_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, np.int64))

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _embeddings(self) -> str:
        words = self._constant("word_embeddings", self._tensor("embeddings.word_embeddings.weight"))
        positions = self._tensor("embeddings.position_embeddings.weight")
        first_type = self._tensor("embeddings.token_type_embeddings.weight")[0]
        table = self._constant("position_embeddings", positions + first_type)
        looked_up = self._add("Gather", [words, "input_ids"], "words")
        shape = self._add("Shape", ["input_ids"], "tokens", start=1, end=2)
        placed = self._add("Slice", [table, self._integers(0), shape, self._integers(0)], "positions")
        return self._norm("embeddings.LayerNorm", self._add("Add", [looked_up, placed], "embedded"))

    def _mask_bias(self) -> str:
        mask = self._add("Cast", ["attention_mask"], "mask", to=1)
        wide = self._add("Unsqueeze", [mask, self._integers(1, 2)], "mask_wide")
        absent = self._add("Sub", [self._number("one", 1.0), wide], "mask_absent")
        return self._add("Mul", [absent, self._number("lowest", -1e9)], "mask_bias")

    def _layer(self, prefix: str, hidden: str, bias: str) -> str:
        attended = self._attention(f"{prefix}.attention.self", hidden, bias)
        projected = self._dense(f"{prefix}.attention.output.dense", attended)
        middle = self._norm(
            f"{prefix}.attention.output.LayerNorm",
            self._add("Add", [projected, hidden], f"{prefix}.attention.residual"),
        )
        raised = self._add("Gelu", [self._dense(f"{prefix}.intermediate.dense", middle)], f"{prefix}.gelu")
        lowered = self._dense(f"{prefix}.output.dense", raised)
        return self._norm(f"{prefix}.output.LayerNorm", self._add("Add", [lowered, middle], f"{prefix}.residual"))

    def _attention(self, prefix: str, hidden: str, bias: str) -> str:
        heads = self._encoder.heads
        size = self._hidden // heads
        shape = self._integers(0, 0, heads, size)

        def split(which: str, order: list[int]) -> str:
            flat = self._dense(f"{prefix}.{which}", hidden)
            headed = self._add("Reshape", [flat, shape], f"{prefix}.{which}.heads")
            return self._add("Transpose", [headed], f"{prefix}.{which}.turned", perm=order)

        query = split("query", [0, 2, 1, 3])
        key = split("key", [0, 2, 3, 1])
        value = split("value", [0, 2, 1, 3])
        scores = self._add("MatMul", [query, key], f"{prefix}.products")
        scaled = self._add("Mul", [scores, self._number("scale", 1 / math.sqrt(size))], f"{prefix}.scores")
        masked = self._add("Add", [scaled, bias], f"{prefix}.masked")
        shares = self._add("Softmax", [masked], f"{prefix}.shares", axis=-1)
        mixed = self._add("MatMul", [shares, value], f"{prefix}.mixed")
        turned = self._add("Transpose", [mixed], f"{prefix}.mixed.turned", perm=[0, 2, 1, 3])
        return self._add("Reshape", [turned, self._integers(0, 0, self._hidden)], f"{prefix}.joined")

    def _dense(self, prefix: str, values: str) -> str:
        # Stored output by input, as a layer keeps it; the product wants it the other way round.
        weight = self._constant(f"{prefix}.weight", self._tensor(f"{prefix}.weight").T)
        bias = self._constant(f"{prefix}.bias", self._tensor(f"{prefix}.bias"))
        return self._add("Add", [self._add("MatMul", [values, weight], f"{prefix}.product"), bias], f"{prefix}.sum")

    def _norm(self, prefix: str, values: str) -> str:
        scale = self._constant(f"{prefix}.weight", self._tensor(f"{prefix}.weight"))
        shift = self._constant(f"{prefix}.bias", self._tensor(f"{prefix}.bias"))
        epsilon = self._encoder.layer_norm_epsilon
        return self._add("LayerNormalization", [values, scale, shift], f"{prefix}.normed", axis=-1, epsilon=epsilon)

    def _pool(self, hidden: str, output: str) -> None:
        mask = self._add("Unsqueeze", ["mask", self._integers(2)], "mask_tokens")
        kept = self._add("Mul", [hidden, mask], "kept")
        total = self._add("ReduceSum", [kept, self._integers(1)], "total", keepdims=0)
        # The mean's divisor goes with the length: a sum and its mean point the same way.
        length = self._add("ReduceL2", [total, self._integers(1)], "length", keepdims=1)
        floor = self._add("Max", [length, self._number("tiny", 1e-9)], "length_floor")
        self._add("Div", [total, floor], output)
