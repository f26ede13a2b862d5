"""`python -m bench.upstream`: an OpenAI-compatible server that writes what a prompt of the bench asks for.

A process of its own, so that its time is not taken for the mesh's. An answer is one event a token, as vLLM writes it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from aiohttp import web

from bench.processes import serve_port
from bench.script import PACE, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DONE = b"data: [DONE]\n\n"


def application(words: Callable[[Script], Sequence[str]] = lambda script: script.words) -> web.Application:
    """Returns the server's application; `words` makes the tokens of an answer."""

    async def chat(request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = msgspec.json.decode(await request.read())
        script = Script.read(body["messages"][-1]["content"], int(body["max_tokens"]))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await _write(response, [_event({"content": word}) for word in words(script)], paced=script.paced)
        await response.write(_event({}, finish="stop") + _usage(script.tokens) + _DONE)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    return app


async def _write(response: web.StreamResponse, events: list[bytes], *, paced: bool) -> None:
    if not paced:
        await response.write(b"".join(events))
        return
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for index, event in enumerate(events):
        # By the clock and not by the gap: a late token does not make all later ones late.
        await asyncio.sleep(max(0.0, begun + index / PACE - loop.time()))
        await response.write(event)


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    chunk = {"id": "bench", "object": "chat.completion.chunk", "created": 1, "model": "scripted", "choices": [choice]}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _usage(tokens: int) -> bytes:
    usage = {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": tokens + 2}
    return b"data: " + msgspec.json.encode({"id": "bench", "choices": [], "usage": usage}) + b"\n\n"


async def serve(app: web.Application) -> None:
    """Serves on a free port until the parent goes."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        await serve_port(int(runner.addresses[0][1]))
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve(application()))
