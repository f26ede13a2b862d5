"""Several ranked lists as one: by reciprocal rank, since scores of different kinds do not compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.common.v1 import retrieval_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Chunk = retrieval_pb2.RetrievedChunk

RANK_CONSTANT = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): the first ranks do not take all."""


def merged(lists: Sequence[Sequence[Chunk]]) -> list[Chunk]:
    """Returns the chunks of all lists, best first; a text that stands in several of them counts for each.

    One list keeps its scores. Of several each chunk has the sum of `1 / (60 + rank)` over the lists that it stands in,
    as a share of what a first place gives; equal sums are told apart by the order of the lists.
    """
    filled = [unique(each) for each in lists if each]
    if len(filled) <= 1:
        return filled[0] if filled else []
    sums: dict[str, float] = {}
    first: dict[str, Chunk] = {}
    for chunks in filled:
        for rank, chunk in enumerate(chunks, start=1):
            sums[chunk.text] = sums.get(chunk.text, 0.0) + (RANK_CONSTANT + 1) / (RANK_CONSTANT + rank)
            first.setdefault(chunk.text, chunk)
    fused: list[Chunk] = []
    for text in sorted(sums, key=lambda text: -sums[text]):
        chunk = retrieval_pb2.RetrievedChunk()
        chunk.CopyFrom(first[text])
        chunk.score = sums[text]
        fused.append(chunk)
    return fused


def unique(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Returns the chunks without those whose text came before: two banks may hold one document."""
    seen: dict[str, Chunk] = {}
    for chunk in chunks:
        seen.setdefault(chunk.text, chunk)
    return list(seen.values())


def packed(chunks: Iterable[Chunk], *, max_chunks: int, max_tokens: int) -> list[Chunk]:
    """Returns the best chunks that fit a budget; one that does not fit leaves its place to a shorter one."""
    taken: list[Chunk] = []
    left = max_tokens
    for chunk in chunks:
        if len(taken) == max_chunks:
            break
        if chunk.tokens <= left:
            taken.append(chunk)
            left -= chunk.tokens
    return taken
