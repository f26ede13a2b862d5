"""What is written down of every request: one line of log, metrics, the id it goes by."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

import structlog
from starlette.datastructures import Headers, MutableHeaders

from turnwire.ids import new_id
from turnwire_gateway.methods import METHODS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = structlog.get_logger("turnwire.http")
_QUIET = frozenset({"/healthz", "/livez", "/readyz"})


class Counting(Protocol):
    """What counts requests."""

    def begun(self, route: str) -> None:
        """Counts a request that is open."""

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that is over."""


class Recorded:
    """Gives each request an id, and writes down how it went. What it says goes to no log."""

    def __init__(self, app: ASGIApp, counting: Counting | None) -> None:
        """`counting` is None where metrics are switched off."""
        self._app = app
        self._counting = counting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and looks at its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        route = _route(scope)
        request_id = _request_id(scope)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["turnwire-request-id"] = request_id
                message = {**message, "headers": headers.raw}
            await send(message)

        if self._counting is not None:
            self._counting.begun(route)
        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            # The gateway ends before the answer does. The server closes the connection of an answer that is not whole.
            _log.warning("request_cut", route=route, request_id=request_id)
        finally:
            seconds = time.monotonic() - begun
            # 499, as nginx and Connect have it: the caller left before there was an answer.
            status = status or 499
            if self._counting is not None:
                self._counting.ended(route, status, seconds)
            if scope["path"] not in _QUIET:
                _log.info(
                    "request_finished",
                    route=route,
                    method=scope["method"],
                    status=status,
                    milliseconds=round(seconds * 1000, 1),
                    request_id=request_id,
                )


def _request_id(scope: Scope) -> str:
    """Takes the caller's id where it has a fit one; the id goes on to the services as a header of the request."""
    named = Headers(scope=scope).get("turnwire-request-id", "")
    if 0 < len(named) <= 100 and named.isascii() and named.isprintable():
        return named
    request_id = new_id("req")
    others = [(name, value) for name, value in scope["headers"] if name != b"turnwire-request-id"]
    scope["headers"] = [*others, (b"turnwire-request-id", request_id.encode())]
    return request_id


def _route(scope: Scope) -> str:
    """Returns the path without its ids: few values, whatever strangers ask for."""
    path: str = scope["path"]
    if path[1:] in METHODS:
        return path
    parts = path.split("/")
    if len(parts) >= 3 and parts[1] == "v1" and parts[2] in {"turns", "artifacts", "models", "chat"}:
        return f"/v1/{parts[2]}"
    return path if path in _QUIET or path == "/" else "other"
