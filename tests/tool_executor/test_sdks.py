"""The makers' Python packages run unchanged against the fakes that the providers are tested with."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import openai
import pytest

from tests.fakes import images_server, search_servers, wolfram_server


async def test_tavilys_package():
    tavily: Any = pytest.importorskip("tavily", reason="tavily-python is not installed")
    async with search_servers.fake_search() as fake:
        client = tavily.TavilyClient(search_servers.KEY, api_base_url=f"{fake.base_url}/tavily")
        found = await asyncio.to_thread(client.search, "turnwire", max_results=2)
        stranger = tavily.TavilyClient("tvly-wrong", api_base_url=f"{fake.base_url}/tavily")
        with pytest.raises(tavily.InvalidAPIKeyError):
            await asyncio.to_thread(stranger.search, "turnwire")

    assert [each["url"] for each in search_servers.PAGES[:2]] == [each["url"] for each in found["results"]]


async def test_wolframalphas_package():
    wolframalpha: Any = pytest.importorskip("wolframalpha", reason="wolframalpha is not installed")
    async with wolfram_server.fake_wolfram() as fake:
        client = wolframalpha.Client(wolfram_server.APP_ID, url=f"{fake.base_url}/query")
        found = await client.aquery("population of France")

    assert "66.4 million people" == next(found.results).text


async def test_openais_package():
    async with (
        images_server.fake_images() as fake,
        openai.AsyncOpenAI(base_url=fake.base_url, api_key=images_server.KEY, max_retries=0) as client,
        openai.AsyncOpenAI(base_url=fake.base_url, api_key="wrong", max_retries=0) as stranger,
    ):
        made = await client.images.generate(model="gpt-image-1", prompt="a red point")
        with pytest.raises(openai.BadRequestError):
            await client.images.generate(model="gpt-image-1", prompt="x", response_format="b64_json")
        with pytest.raises(openai.AuthenticationError):
            await stranger.images.generate(model="gpt-image-1", prompt="x")

    assert made.data is not None
    assert images_server.PICTURE == base64.b64decode(made.data[0].b64_json or "")
