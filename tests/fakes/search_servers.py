"""Search services that answer as their makers' documents say, well or badly.

Fakes, none of them a recording: nobody here has a key. What of the makers was looked up on 25 November 2026, in stored
copies of their public pages, and what was not to be had:

- Bing: learn.microsoft.com, bing/search-apis/bing-web-search/reference/error-codes (the body of an error, codes, 401
  with "Subscription key is not recognized.") and reference/endpoints. Microsoft has retired the service; the form of
  `webPages` is that of the Web Search API v7 reference, of which only the beginning was read;
- SearXNG: docs.searxng.org/dev/search_api: the endpoint, `format`, 403 for a format that is not allowed. The page does
  not show an answer: the fields of `results` are those that clients of others read (langchainjs, one-search-mcp);
- Tavily: help.tavily.com, "What is the Tavily Search API?" (March 2025): POST, the bearer key, `query`. The reference
  at docs.tavily.com was not to be had. The fields are those that LangChain's types list, and what tavily-python 0.8.5
  sends and reads, which runs unchanged against it in `tests/tool_executor/test_sdks.py`;
- Brave: api-dashboard.search.brave.com/documentation/quickstart, in parts. Its reference of the web search and of the
  errors was not to be had: the header, `count`, `web.results` and the 422 for an unknown token are as clients of others
  have them, and no page of the maker confirms them here.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

KEY = "tvly-a-secret-that-no-log-may-hold"
PAGES = [
    {
        "title": "Turnwire &amp; gRPC",
        "url": "https://example.org/turnwire",
        "text": "A <strong>mesh</strong> of services.",
    },
    {"title": "Zweite Seite", "url": "https://example.org/zwei", "text": "Grüße  aus\nder Küche"},
    {"title": "A script", "url": "javascript:alert(1)", "text": "no page"},
    {"title": "", "url": "https://example.org/nameless", "text": "x" * 5000},
]
"""What is found, in each maker's own form."""


@dataclass
class FakeSearch:
    """Behaves as its `script` says: one word a request, a status or what `_misbehaved` knows; well without one."""

    base_url: str = ""
    script: list[str] = field(default_factory=list[str])
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody asks."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """What hangs goes on when it is set."""
    open: int = 0
    most_at_once: int = 0

    def app(self) -> web.Application:
        """Returns the application to serve: each maker below a path of its own."""
        app = web.Application()
        app.router.add_get("/brave/web/search", self._handler(self._brave))
        app.router.add_get("/bing/search", self._handler(self._bing))
        app.router.add_post("/tavily/search", self._handler(self._tavily))
        app.router.add_get("/searxng/search", self._handler(self._searxng))
        return app

    def _handler(self, answer: Callable[[web.Request, dict[str, Any]], web.Response]) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.json() if request.can_read_body else {}
            self.requests.append({"headers": dict(request.headers), "query": dict(request.query), "body": body})
            self.open += 1
            self.most_at_once = max(self.most_at_once, self.open)
            self.asked.set()
            try:
                behaviour = self.script.pop(0) if self.script else "good"
                if behaviour == "hang":
                    await self.gate.wait()
                    behaviour = "good"
                if behaviour == "half":
                    return await self._half(request, answer(request, body))
                return _misbehaved(behaviour) or answer(request, body)
            finally:
                self.open -= 1

        return handle

    async def _half(self, request: web.Request, whole: web.Response) -> web.StreamResponse:
        """Sends one half of an answer at once, and the other when the gate is open."""
        assert isinstance(whole.body, bytes)
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        middle = len(whole.body) // 2
        await response.write(whole.body[:middle])
        await self.gate.wait()
        await response.write(whole.body[middle:])
        return response

    def _brave(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        if request.headers.get("X-Subscription-Token") != KEY:
            detail = "The provided subscription token is invalid."
            error = {"id": "1", "status": 422, "code": "SUBSCRIPTION_TOKEN_INVALID", "detail": detail}
            return web.json_response({"type": "ErrorResponse", "error": error}, status=422)
        results = [
            {"type": "search_result", "title": each["title"], "url": each["url"], "description": each["text"]}
            for each in PAGES[: int(request.query["count"])]
        ]
        found = {"type": "search", "query": {"original": request.query["q"]}}
        return web.json_response(found | ({"web": {"type": "search", "results": results}} if _any(request) else {}))

    def _bing(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        if request.headers.get("Ocp-Apim-Subscription-Key") != KEY:
            error = {
                "code": "InvalidAuthorization",
                "subCode": "AuthorizationMissing",
                "message": "Authorization is required.",
                "moreDetails": "Subscription key is not recognized.",
            }
            return web.json_response({"_type": "ErrorResponse", "errors": [error]}, status=401)
        pages = [{"name": each["title"], "url": each["url"], "snippet": each["text"]} for each in PAGES]
        found: dict[str, Any] = {"_type": "SearchResponse", "queryContext": {"originalQuery": request.query["q"]}}
        return web.json_response(found | ({"webPages": {"value": pages}} if _any(request) else {}))

    def _tavily(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"detail": {"error": "Unauthorized: missing or invalid API key."}}, status=401)
        results = [
            {"title": each["title"], "url": each["url"], "content": each["text"], "score": 0.9, "raw_content": None}
            for each in PAGES[: body.get("max_results", 5)]
        ]
        found = {"query": body["query"], "answer": None, "images": [], "response_time": 0.5, "request_id": "1"}
        return web.json_response(found | {"results": results if body["query"] != "nothing" else []})

    def _searxng(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        if request.query.get("format") != "json":
            return web.Response(status=403, text="403 Forbidden")
        results = [{"title": each["title"], "url": each["url"], "content": each["text"]} for each in PAGES]
        found: dict[str, Any] = {"query": request.query["q"], "answers": [], "suggestions": []}
        return web.json_response(found | {"results": results if _any(request) else []})


def _any(request: web.Request) -> bool:
    return request.query["q"] != "nothing"


def _misbehaved(behaviour: str) -> web.Response | None:
    match behaviour:
        case "good":
            return None
        case "garbage":
            return web.Response(text=f"<html>{KEY}</html>", content_type="text/html")
        case "odd":
            return web.json_response({"web": {"results": 3}, "webPages": {"value": 3}, "results": 3})
        case "huge":
            return web.Response(body=b" " * (5 * 1024 * 1024))
        case "moved":
            return web.Response(status=302, headers={"location": "https://elsewhere.example/"})
        case status:
            headers = {"retry-after": "7"} if status == "429" else {}
            return web.json_response({"detail": f"no, {KEY}"}, status=int(status), headers=headers)


@asynccontextmanager
async def fake_search() -> AsyncGenerator[FakeSearch]:
    """Gives the fakes, served on one port."""
    fake = FakeSearch()
    runner = web.AppRunner(fake.app(), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.base_url = f"http://{host}:{port}"
    try:
        yield fake
    finally:
        fake.gate.set()
        await runner.cleanup()
