"""How long the chunks of a vector bank are: what its model reads of a text, and no more."""

from __future__ import annotations

import pytest

from turnwire.errors import InvalidArgument
from turnwire.memory.embedding import EmbeddingModel
from turnwire.memory.registry import settle_vectors
from turnwire.memory.v1 import bank_pb2


def _settled(context_tokens: int, size: int = 0) -> int:
    bank = bank_pb2.MemoryBank(bank_id="b", vector=bank_pb2.VectorBankConfig(chunk_size_tokens=size))
    settle_vectors(bank, EmbeddingModel("embeddings/all-minilm-l6-v2", 384, context_tokens))
    return bank.vector.chunk_size_tokens


@pytest.mark.parametrize(
    ("context_tokens", "size", "expected"), [(256, 0, 254), (256, 254, 254), (0, 0, 256), (8192, 0, 256), (128, 0, 126)]
)
def test_a_chunk_leaves_room_for_the_two_marks_of_the_model(context_tokens: int, size: int, expected: int):
    assert expected == _settled(context_tokens, size)


def test_a_chunk_that_the_model_would_cut_is_refused():
    with pytest.raises(InvalidArgument, match="is 255, and embeddings/all-minilm-l6-v2 reads 254 tokens of a text"):
        _settled(256, 255)
