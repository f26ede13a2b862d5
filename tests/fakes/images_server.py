"""A server that speaks OpenAI's images endpoint, well or badly.

A fake, no recording: nobody here has a key. The maker's API reference was not to be had on 25 November 2026; its fields
(`created`, `data`, `b64_json`, `url`, `revised_prompt`) were looked up in types that others have generated from its
OpenAPI document (the crate openai-lib, LangChain's). That errors have the maker's form rests on the maker's own Python
SDK, which runs unchanged against it in `tests/tool_executor/test_sdks.py`.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

KEY = "sk-a-secret-that-no-log-may-hold"


def _png() -> bytes:
    """Returns a picture of one red point."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0\xff\0\0")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


PICTURE = _png()


class FakeImages:
    """Behaves as its `script` says: one word a request, well without one."""

    def __init__(self) -> None:
        self.base_url = ""
        self.host = ""
        self.script: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.effects: list[str] = []
        """The call ids of the pictures that were made, and that somebody pays for."""
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    def app(self) -> web.Application:
        """Returns the application to serve."""
        app = web.Application()
        app.router.add_post("/v1/images/generations", self._generate)
        app.router.add_get("/picture.png", self._picture)
        return app

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.asked.set()
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key != KEY:
            return _refused(401, "invalid_api_key", f"Incorrect API key provided: {key}.")
        # The reference: `response_format` "isn't supported for the GPT image models".
        if "response_format" in body and body["model"].startswith("gpt-image"):
            return _refused(400, "unknown_parameter", "Unknown parameter: 'response_format'.")
        behaviour = self.script.pop(0) if self.script else "good"
        encoded = base64.b64encode(PICTURE).decode()
        match behaviour:
            case "hang":
                await self.gate.wait()
                self._make(request)
                return _made({"b64_json": encoded})
            case "make and hang":
                self._make(request)
                await self.gate.wait()
                return _made({"b64_json": encoded})
            case "url":
                return _made({"url": f"http://{self.host}/picture.png", "revised_prompt": "A very red point"})
            case "text":
                return _made({"b64_json": base64.b64encode(b"<html>no picture</html>").decode()})
            case "not base64":
                return _made({"b64_json": "%%%"})
            case "empty":
                return web.json_response({"created": 1, "data": []})
            case "cut":
                self._make(request)
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "502" | "503" | "504":
                return _refused(int(behaviour), "server_error", "The server is overloaded.")
            case "policy":
                return _refused(400, "moderation_blocked", "Your request was rejected by the safety system.")
            case _:
                self._make(request)
                return _made({"b64_json": encoded})

    def _make(self, request: web.Request) -> None:
        self.effects.append(request.headers.get("turnwire-call-id", ""))

    async def _picture(self, request: web.Request) -> web.Response:
        return web.Response(body=PICTURE, content_type="image/png")


def _made(image: dict[str, Any]) -> web.Response:
    return web.json_response({"created": 1713833628, "data": [image], "usage": {"total_tokens": 100}})


def _refused(status: int, code: str, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


@asynccontextmanager
async def fake_images() -> AsyncGenerator[FakeImages]:
    """Gives the fake, served."""
    fake = FakeImages()
    runner = web.AppRunner(fake.app(), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    fake.host = f"{host}:{port}"
    fake.base_url = f"http://{fake.host}/v1"
    try:
        yield fake
    finally:
        fake.gate.set()
        await runner.cleanup()
