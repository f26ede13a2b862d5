"""A model for vectors that costs nothing, and what the tests of the memory service share."""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DIMENSION = 64


class WordVectors:
    """Serves `/v1/embeddings` with a vector out of a text's words: texts with the same words are near.

    It is no fake of anybody's model; it stands where a test needs vectors and not their meaning.
    """

    def __init__(self) -> None:
        self.base_url = ""
        self.dimension = DIMENSION
        self.texts: list[str] = []
        """All that came."""
        self.away = False
        self.slow_words = ""
        """A text that has them takes `slow_seconds`, as with a slow model."""
        self.slow_seconds = 0.0

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.away:
            raise web.HTTPServiceUnavailable
        self.texts += body["input"]
        if self.slow_words and any(self.slow_words in text for text in body["input"]):
            await asyncio.sleep(self.slow_seconds)
        vectors = [vector(text, self.dimension) for text in body["input"]]
        data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(vectors)]
        return web.json_response({"object": "list", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    @property
    def provider(self) -> dict[str, Any]:
        """The provider that asks it, for the settings."""
        models = [{"model_id": "words", "type": "embedding", "embedding_dimension": self.dimension}]
        config = {"base_url": self.base_url, "models": models, "connect_seconds": 2}
        return {"provider_id": "words", "provider_type": "remote::openai", "config": config}


def vector(text: str, dimension: int = DIMENSION) -> list[float]:
    """Returns one number for each group of words."""
    counts = [0.001] * dimension
    for word in re.findall(r"\w+", text.lower()):
        counts[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % dimension] += 1.0
    return counts


@asynccontextmanager
async def serving_words() -> AsyncGenerator[WordVectors]:
    served = WordVectors()
    app = web.Application()
    app.router.add_post("/v1/embeddings", served.embeddings)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield served
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def word_vectors() -> AsyncGenerator[WordVectors]:
    """The model."""
    async with serving_words() as served:
        yield served
