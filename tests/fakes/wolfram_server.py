"""A server that speaks the Full Results API of Wolfram|Alpha, in JSON and in XML, well or badly.

A fake, no recording: nobody here has an AppID. Looked up on 25 November 2026, in stored copies: the page of the maker's
JavaScript library (products.wolframalpha.com/api/libraries/javascript), which shows `success`, `error`, `numpods`,
`datatypes` and `timedout` of a good and of a fruitless answer in JSON and the first line of one in XML, and its readme
(`pods`, `subpods`). The "Full Results API Reference" itself (products.wolframalpha.com/api/documentation) was not to be
had: `didyoumeans`, `tips` and error 1 for an unknown AppID come from no page of the maker. The package wolframalpha
5.1.4 runs unchanged against it in `tests/tool_executor/test_sdks.py`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

APP_ID = "DEMO-APPID+SECRET"
ANSWERS = {"population of France": "66.4 million people", "2+2": "4"}


class FakeWolfram:
    """Knows the answers of `ANSWERS`."""

    def __init__(self) -> None:
        self.base_url = ""
        self.queries: list[dict[str, str]] = []

    def app(self) -> web.Application:
        """Returns the application to serve."""
        app = web.Application()
        app.router.add_get("/v2/query", self._query)
        return app

    async def _query(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        self.queries.append(query)
        told = query["input"]
        if query.get("appid") != APP_ID:
            error = {"success": False, "error": {"code": "1", "msg": "Invalid appid"}}
            return _json(error) if query.get("output") == "json" else _xml("success='false' error='true'", "")
        answer = ANSWERS.get(told)
        if query.get("output") == "json":
            if answer is None:
                means = {"score": "0.4", "level": "medium", "val": "population"}
                return _json({"success": False, "error": False, "numpods": 0, "didyoumeans": means})
            pods = [
                {"title": "Input interpretation", "id": "Input", "subpods": [{"title": "", "plaintext": told}]},
                {"title": "Result", "id": "Result", "primary": True, "subpods": [{"title": "", "plaintext": answer}]},
                {"title": "Plot", "id": "Plot", "subpods": [{"title": "", "plaintext": ""}]},
            ]
            return _json({"success": True, "error": False, "numpods": len(pods), "pods": pods})
        if answer is None:
            return _xml("success='false' error='false' numpods='0'", "")
        subpod = f"<subpod title=''><plaintext>{escape(answer)}</plaintext></subpod>"
        pod = f"<pod title='Result' id='Result' primary='true' numsubpods='1'>{subpod}</pod>"
        return _xml("success='true' error='false' numpods='1'", pod)


def _json(result: dict[str, Any]) -> web.Response:
    return web.json_response({"queryresult": result})


def _xml(attributes: str, body: str) -> web.Response:
    text = f"<?xml version='1.0' encoding='UTF-8'?><queryresult {attributes}>{body}</queryresult>"
    return web.Response(text=text, content_type="text/xml", charset="utf-8")


@asynccontextmanager
async def fake_wolfram() -> AsyncGenerator[FakeWolfram]:
    """Gives the fake, served."""
    fake = FakeWolfram()
    runner = web.AppRunner(fake.app(), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    fake.base_url = f"http://{host}:{port}/v2"
    try:
        yield fake
    finally:
        await runner.cleanup()
