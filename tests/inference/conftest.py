"""The chat providers that are held to the same suite, and the one engine that the heavy tests share."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.fakes.openai_server import KEY, TEXT, fake_openai
from turnwire import weights
from turnwire.inference import providers
from turnwire.inference.providers import llama_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.inference.v1 import model_pb2

LLAMA_MODEL = "qwen2.5-coder-0.5b"
CONTEXT_TOKENS = 1024
PARALLEL = 4


@dataclass
class Subject:
    """A provider with a model to ask."""

    provider: Any
    model: model_pb2.Model
    tells_stop_sequences: bool = True
    """It tells a stop sequence from the model's own end."""
    holds_to_schemas: bool = True

    @property
    def idle(self) -> bool:
        """True when it says that nothing is open."""
        return self.provider.state()[1] == "0 open streams"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def llama() -> AsyncGenerator[Subject]:
    """The embedded model in this process. Its HTTP port takes our key."""
    weights.locate(LLAMA_MODEL)
    config = {"models": [{"model_id": LLAMA_MODEL, "context_tokens": CONTEXT_TOKENS}], "parallel": PARALLEL}
    provider: Any = providers.build("local", "inline::llama-cpp", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_engine, "secrets", _OurKey)
        await provider.start()
        (model,) = [model for model in await provider.models() if model.model_id == LLAMA_MODEL]
        await provider._engine(LLAMA_MODEL)._ready()
    yield Subject(provider, model)
    await provider.close()


class _OurKey:
    @staticmethod
    def token_urlsafe(_: int) -> str:
        return KEY


@asynccontextmanager
async def _openai(base_url: str) -> AsyncGenerator[Subject]:
    provider: Any = providers.build("gpu", "remote::openai", {"base_url": base_url, "api_key": KEY})
    try:
        model, *_ = await provider.models()
        yield Subject(provider, model, tells_stop_sequences=False)
    finally:
        await provider.close()


@pytest_asyncio.fixture(loop_scope="session")
async def scripted() -> AsyncGenerator[Subject]:
    """A model that follows a script."""
    rules = [
        {"contains": "long", "tokens": 400, "tokens_per_second": 2000},
        {"contains": "add", "calls": [{"name": "add", "arguments": {"n": 1}}]},
        {"text": TEXT},
    ]
    config = {"models": ["scripted"], "context_tokens": CONTEXT_TOKENS, "rules": rules}
    provider: Any = providers.build("scripted", "inline::scripted", config)
    (model,) = await provider.models()
    yield Subject(provider, model, holds_to_schemas=False)


@pytest_asyncio.fixture(loop_scope="session")
async def openai_fake() -> AsyncGenerator[Subject]:
    """`remote::openai` over the fake."""
    async with fake_openai() as fake, _openai(fake.base_url) as subject:
        yield subject


@pytest_asyncio.fixture(loop_scope="session")
async def openai_llama(llama: Subject) -> AsyncGenerator[Subject]:
    """`remote::openai` over llama.cpp's own HTTP server, which is the engine of `llama`."""
    server = llama.provider._engine(LLAMA_MODEL)._server
    async with _openai(f"{server.listening_address}/v1") as subject:
        yield subject


@pytest.fixture(
    params=[
        "scripted",
        "openai_fake",
        pytest.param("llama", marks=pytest.mark.model),
        pytest.param("openai_llama", marks=pytest.mark.model),
    ]
)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each chat provider in turn."""
    return request.getfixturevalue(request.param)
