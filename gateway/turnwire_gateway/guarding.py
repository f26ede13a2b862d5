"""Who may talk to the gateway from a browser: other origins by setting, other host names never on an open mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = "GET, HEAD, POST, PUT, OPTIONS"
_SENT = ", ".join(
    (
        "authorization",
        "content-type",
        "connect-protocol-version",
        "connect-timeout-ms",
        "connect-content-encoding",
        "grpc-timeout",
        "x-grpc-web",
        "x-user-agent",
        "last-event-id",
        "range",
        "if-range",
        "traceparent",
        "tracestate",
        "turnwire-request-id",
    )
)
_READ = "grpc-status, grpc-message, grpc-status-details-bin, turnwire-request-id, retry-after, content-range, etag"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


class CrossOrigin:
    """Lets pages of the allowed origins read answers; without any, only pages of the gateway itself can."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """`origins` as browsers write them, `https://app.example.org`; `*` is every one."""
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers preflights, and adds the headers to answers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        allowed = bool(origin) and (origin in self._origins or "*" in self._origins)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            response = PlainTextResponse("", 204 if allowed else 403)
            if allowed:
                self._allow(response.headers, origin)
                response.headers["access-control-allow-methods"] = _METHODS
                response.headers["access-control-allow-headers"] = _SENT
                response.headers["access-control-max-age"] = "7200"
            await response(scope, receive, send)
            return
        if not allowed:
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(raw=list(message.get("headers", ())))
                self._allow(added, origin)
                added["access-control-expose-headers"] = _READ
                message = {**message, "headers": added.raw}
            await send(message)

        await self._app(scope, receive, sending)

    @staticmethod
    def _allow(headers: MutableHeaders, origin: str) -> None:
        headers["access-control-allow-origin"] = origin
        headers.add_vary_header("origin")


class LoopbackNames:
    """Refuses requests that name another host: a page of a stranger whose name leads here (DNS rebinding).

    For a mesh that lets everybody in because only this machine can reach it.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Stands before everything that can be called."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes requests to a loopback name on."""
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = host[: host.rindex("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if name.lower() not in _LOOPBACK:
                response = PlainTextResponse(
                    "This mesh has no keys and answers to localhost only: configure `access.api_keys`, or call it"
                    " by 127.0.0.1.\n",
                    421,
                )
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
