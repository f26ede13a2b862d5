"""The ONNX graph written from an encoder's weights agrees with a plain numpy encoder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.weights.bert import embeddings, random_tensors, safetensors_of
from tests.weights.conftest import Recorder
from tests.weights.servers import Server, file_of
from turnwire.weights import BuildFailed, Model, Precision, WeightsMissing, locate, manifest, pull
from turnwire.weights.manifest import Encoder, model_named
from turnwire.weights.safetensors import read_tensors

ENCODER = Encoder(heads=4, layer_norm_epsilon=1e-12, max_tokens=16)
TENSORS = random_tensors(hidden=32, layers=2, words=50, positions=16)
IDS = np.array([[5, 9, 2, 7, 41], [3, 1, 0, 0, 0], [8, 8, 8, 11, 0]], np.int64)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], np.int64)


def _run(path: Path, ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    runtime: Any = importlib.import_module("onnxruntime")  # untyped
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]


@pytest.fixture
def encoder(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A manifest of one tiny encoder, whose weights are on the hub."""
    content = safetensors_of(TENSORS)
    file = file_of(content, "model.safetensors")
    model = Model("tiny", "A tiny encoder", "us", "Apache-2.0", (file,), default=True, encoder=ENCODER)
    monkeypatch.setattr(manifest, "MODELS", (model,))
    server.put_on_hub(file, content)
    return model


def test_the_graph_agrees_with_the_plain_encoder(encoder: Model) -> None:
    pull(precision="fp32")

    found = _run(locate("tiny", precision="fp32"), IDS, MASK)

    np.testing.assert_allclose(found, embeddings(TENSORS, ENCODER, IDS, MASK), atol=2e-5)


def test_padding_changes_nothing(encoder: Model) -> None:
    pull(precision="fp32")
    path = locate("tiny", precision="fp32")

    alone = _run(path, IDS[1:2, :2], MASK[1:2, :2])

    np.testing.assert_allclose(_run(path, IDS, MASK)[1:2], alone, atol=2e-5)


def test_eight_bits_stay_near(encoder: Model) -> None:
    pull()

    found = _run(locate("tiny"), IDS, MASK)

    cosines = (found * embeddings(TENSORS, ENCODER, IDS, MASK)).sum(axis=1)
    assert cosines.min() > 0.98
    assert cosines.min() < 0.999999  # these really are eight bits


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_graph_says_what_it_was_written_from(encoder: Model, precision: Precision) -> None:
    onnx: Any = importlib.import_module("onnx")  # partly typed
    pull(precision=precision)

    graph = onnx.load(str(locate("tiny", precision=precision)))

    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert encoder.files[0].sha256 == said["turnwire.source_sha256"]
    assert (precision, "16") == (said["turnwire.precision"], said["turnwire.max_tokens"])


def test_a_graph_is_written_once_and_again_for_another_builder(
    encoder: Model, progress: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull()
    first = locate("tiny")
    written = first.stat().st_mtime_ns
    pull(None, progress)
    assert [] == progress.notes
    monkeypatch.setattr("turnwire.weights.cache.GRAPH_BUILD", 99)
    with pytest.raises(WeightsMissing):
        locate("tiny")

    pull()

    assert first != locate("tiny")
    assert written == first.stat().st_mtime_ns


def test_nothing_unfinished_is_left(encoder: Model, cache: Path) -> None:
    pull()

    assert [] == list((cache / "tiny").glob(".graph-*"))


def test_a_machine_without_onnx_is_told_so(encoder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(BuildFailed, match="needs the onnx and onnxruntime packages"):
        pull()


def test_weights_of_another_kind_are_refused(
    cache: Path, server: Server, encoder: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = safetensors_of({"wte.weight": np.zeros((2, 2), np.float32)})
    file = file_of(content, "model.safetensors")
    model = Model("tiny", "Not an encoder", "us", "Apache-2.0", (file,), default=True, encoder=ENCODER)
    monkeypatch.setattr(manifest, "MODELS", (model,))
    server.put_on_hub(file, content)

    with pytest.raises(BuildFailed, match=r"no tensor embeddings\.word_embeddings\.weight"):
        pull()


@pytest.mark.parametrize("length", [50_000_000, 2**64 - 1])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" * 50)

    with pytest.raises(BuildFailed, match="is no safetensors file"):
        read_tensors(path)


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_of(TENSORS))

    found = read_tensors(path)

    assert TENSORS.keys() == found.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)


SIMILAR = (
    ("How do I reset my password?", "I forgot my password and need to change it"),
    ("The cat sat on the mat", "A kitten is resting on a rug"),
    ("Stock prices fell sharply today", "The market dropped a lot this afternoon"),
    ("Python is a programming language", "Coding in Python"),
)
DIFFERENT = (
    ("The weather is sunny", "He plays the violin"),
    ("Database index tuning", "My grandmother bakes bread"),
    ("A stream of events", "a walk on the beach"),
)


def test_the_real_encoder_tells_similar_from_different() -> None:
    """Runs where `turnwire models pull` has run, as it has in CI."""
    try:
        graph, tokens = locate("minilm"), locate("minilm", "tokenizer.json")
    except WeightsMissing as error:
        pytest.skip(str(error))
    tokenizers: Any = importlib.import_module("tokenizers")  # partly typed
    tokenizer = tokenizers.Tokenizer.from_file(str(tokens))
    tokenizer.enable_padding()

    def encoded(texts: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        found = tokenizer.encode_batch(texts)
        return np.array([entry.ids for entry in found]), np.array([entry.attention_mask for entry in found])

    def cosine(pair: tuple[str, str]) -> float:
        first, second = _run(graph, *encoded(list(pair)))
        return float(first @ second)

    assert min(map(cosine, SIMILAR)) > 0.5
    assert max(map(cosine, DIFFERENT)) < 0.15

    ids, mask = encoded([text for pair in SIMILAR[:2] for text in pair])
    real = model_named("minilm").encoder
    assert real is not None
    oracle = embeddings(read_tensors(locate("minilm", "model.safetensors")), real, ids, mask)
    assert (_run(graph, ids, mask) * oracle).sum(axis=1).min() > 0.97
