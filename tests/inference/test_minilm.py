"""Embeddings of the real model: what they mean, how they agree with the plain encoder, where texts are cut."""

from __future__ import annotations

import asyncio
import importlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio

from tests.weights.bert import embeddings
from turnwire import weights
from turnwire.common.v1 import inspect_service_pb2
from turnwire.inference import providers
from turnwire.inference.v1 import model_pb2
from turnwire.weights.manifest import model_named
from turnwire.weights.safetensors import read_tensors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [pytest.mark.model, pytest.mark.timeout(120)]
TEXTS = [
    "A cat sits on the mat.",
    "A kitten rests on the rug.",
    "The stock market fell sharply today.",
    "Grüße aus der Küche 🍳, with a few words more so that rows have different lengths.",
]


@pytest_asyncio.fixture
async def minilm() -> AsyncGenerator[Any]:
    provider: Any = providers.build("vectors", "inline::minilm", {})
    await provider.start()
    yield provider
    await provider.close()


async def _vectors(provider: Any, texts: list[str]) -> Any:
    (model,) = await provider.models()
    response = await provider.embed(model, texts)
    return np.array([list(each.values) for each in response.embeddings]), response.usage.prompt_tokens


async def test_the_model_says_what_it_is(minilm: Any):
    (model,) = await minilm.models()
    assert (model_pb2.MODEL_TYPE_EMBEDDING, 384, 256) == (model.type, model.embedding_dimension, model.context_tokens)
    assert (inspect_service_pb2.Provider.STATE_READY, "") == minilm.state()


@pytest.mark.everyday
async def test_vectors_agree_with_the_plain_encoder(minilm: Any):
    """The encoder in numpy reads the maker's weights; eight bits stay near it."""
    encoder = model_named("minilm").encoder
    assert encoder is not None
    tensors = read_tensors(weights.locate("minilm", "model.safetensors"))
    tokenizers: Any = importlib.import_module("tokenizers")  # untyped
    tokenizer = tokenizers.Tokenizer.from_file(str(weights.locate("minilm", "tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    expected = [
        embeddings(tensors, encoder, np.array([encoded.ids]), np.array([encoded.attention_mask]))[0]
        for encoded in tokenizer.encode_batch(TEXTS)
    ]
    found, tokens = await _vectors(minilm, TEXTS)

    cosines = (found * np.array(expected)).sum(axis=1)
    assert cosines.min() > 0.97
    np.testing.assert_allclose(found @ found.T, np.array(expected) @ np.array(expected).T, atol=0.06)
    assert sum(len(encoded.ids) for encoded in tokenizer.encode_batch(TEXTS)) == tokens


async def test_vectors_have_length_one_and_know_what_is_alike(minilm: Any):
    found, _ = await _vectors(minilm, TEXTS)

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    alike = found @ found.T
    assert alike[0, 1] > 0.5
    assert max(alike[0, 2], alike[1, 2]) < 0.2


async def test_a_text_is_read_up_to_256_tokens(minilm: Any):
    # Each of these words is one token; two more stand around them.
    long, tokens = await _vectors(minilm, ["cat " * 254 + "stock market " * 100])
    cut, _ = await _vectors(minilm, ["cat " * 254])

    assert 256 == tokens
    np.testing.assert_allclose(long, cut, atol=1e-6)


async def test_the_largest_request_is_answered_in_order_without_holding_up_the_loop(minilm: Any):
    threads: set[str] = set()
    made = minilm._embed

    def noted(texts: list[str]) -> Any:
        threads.add(threading.current_thread().name)
        return made(texts)

    minilm._embed = noted
    texts = [f"{number} {TEXTS[number % 4]}" for number in range(512)]
    turns = 0
    embedding = asyncio.create_task(_vectors(minilm, texts))
    while not embedding.done():
        turns += 1
        await asyncio.sleep(0.001)
    found, _ = embedding.result()

    assert (512, 384) == found.shape
    assert threads
    assert all(name.startswith("minilm") for name in threads)
    assert turns > 20
    for number in (0, 31, 32, 511):
        alone, _ = await _vectors(minilm, [texts[number]])
        # Padding to a longer neighbour changes the eight bits a little.
        assert (alone[0] * found[number]).sum() > 0.98


async def test_closing_waits_for_the_text_in_work(minilm: Any):
    embedding = asyncio.create_task(_vectors(minilm, TEXTS * 4))
    await asyncio.sleep(0)
    await minilm.close()
    found, _ = await embedding
    assert (16, 384) == found.shape
