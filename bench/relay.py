"""`python -m bench.relay`: the baseline, a bare grpc.aio relay of the same tokens in as many processes and hops.

`source` reads the upstream and streams its tokens, `relay` passes the stream on. No log, no fold, no store, no
identity: what the mesh costs above this is what its promises cost. Messages and options of gRPC are the mesh's own.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import uvloop

from bench.processes import serve_port
from bench.script import PACE, SCRIPTED_LABEL, Script
from bench.sse import tokens
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.inference.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    InferenceServiceStub,
    add_InferenceServiceServicer_to_server,
)
from turnwire.runtime.channels import channel_options, upstream
from turnwire.runtime.server import server_options
from turnwire.runtime.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    Context = grpc.aio.ServicerContext[Any, Any]


class Source(InferenceServiceServicer):
    """Streams the tokens of an upstream, or of a script of its own when there is none."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        """Reads from `base_url`; empty: from no other process."""
        self._session = session
        self._base_url = base_url

    async def ChatCompletion(
        self, request: messages.ChatCompletionRequest, context: Context
    ) -> AsyncIterator[messages.ChatCompletionResponse]:
        """Streams an answer, a message a token."""
        prompt = request.messages[-1].parts[0].text
        count = request.sampling_parameters.max_tokens
        words = tokens(self._session, self._base_url, prompt, count) if self._base_url else _scripted(prompt, count)
        async with aclosing(words):
            async for word in words:
                yield messages.ChatCompletionResponse(text=messages.TextDelta(text=word))
        yield messages.ChatCompletionResponse(completed=messages.ChatCompletionCompleted())


class Relay(InferenceServiceServicer):
    """Passes a stream on."""

    def __init__(self, stub: InferenceServiceStub) -> None:
        """Reads from `stub`."""
        self._stub = stub

    async def ChatCompletion(
        self, request: messages.ChatCompletionRequest, context: Context
    ) -> AsyncIterator[messages.ChatCompletionResponse]:
        """Streams what the source streams."""
        call = self._stub.ChatCompletion(request, timeout=context.time_remaining())
        async with upstream(call):
            async for piece in call:
                yield piece


async def _scripted(prompt: str, count: int) -> AsyncGenerator[str]:
    """Yields what `inline::scripted` writes for a prompt."""
    asked = Script.read(prompt, count)
    script = Script(SCRIPTED_LABEL, count, paced=asked.paced)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for index, word in enumerate(script.words):
        if script.paced:
            await asyncio.sleep(max(0.0, begun + index / PACE - loop.time()))
        yield word


@asynccontextmanager
async def _servicer(arguments: argparse.Namespace) -> AsyncGenerator[InferenceServiceServicer]:
    if arguments.role == "source":
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            yield Source(session, arguments.upstream)  # pyright: ignore[reportAbstractUsage] - one method is all it serves
        return
    async with grpc.aio.insecure_channel(arguments.upstream, options=channel_options(small_windows=True)) as channel:
        stub: Any = InferenceServiceStub(channel)
        yield Relay(stub)  # pyright: ignore[reportAbstractUsage] - one method is all it serves


async def serve(arguments: argparse.Namespace) -> None:
    """Serves on a free port until the parent goes."""
    async with _servicer(arguments) as servicer:
        server = grpc.aio.server(options=server_options(Settings()))
        add_InferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await serve_port(port)
        finally:
            await server.stop(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["source", "relay"])
    parser.add_argument("upstream", help="the URL of the upstream, or the address of the source")
    uvloop.run(serve(parser.parse_args()))
