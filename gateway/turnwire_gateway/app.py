"""The gateway as one ASGI application."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from turnwire_gateway.artifacts import get_artifact, put_artifact
from turnwire_gateway.guarding import CrossOrigin, LoopbackNames
from turnwire_gateway.health import Health
from turnwire_gateway.openai.routes import openai_routes
from turnwire_gateway.page import page_routes
from turnwire_gateway.recording import Counting, Recorded
from turnwire_gateway.rpc import Rpc, is_rpc
from turnwire_gateway.turn_events import turn_events

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from turnwire.runtime.settings import Settings
    from turnwire_gateway.upstream import Upstreams


def gateway_app(
    settings: Settings, upstreams: Upstreams, draining: asyncio.Event, counting: Counting | None = None
) -> ASGIApp:
    """Returns the application. Whoever opened the upstreams closes them."""
    routes = Starlette(
        routes=[
            *Health(draining).routes(),
            *page_routes(),
            *openai_routes(),
            Route("/v1/turns/{turn_id}/events", turn_events, methods=["GET"]),
            Route("/v1/artifacts", put_artifact, methods=["PUT"]),
            Route("/v1/artifacts/{artifact_id}", get_artifact, methods=["GET"]),
        ],
        exception_handlers={404: _nothing_here, 405: _other_method},
    )
    routes.state.upstreams = upstreams
    routes.state.settings = settings
    routes.state.draining = draining
    app: ASGIApp = _Parted(routes, Rpc(upstreams, settings.limits.message_bytes))
    app = CrossOrigin(app, settings.gateway.allowed_origins)
    if not settings.access.api_keys and is_loopback(settings.listen.host):
        app = LoopbackNames(app)
    return Recorded(app, counting)


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Parted:
    """The contract, and everything else: calls need no routing."""

    def __init__(self, routes: ASGIApp, rpc: ASGIApp) -> None:
        self._routes = routes
        self._rpc = rpc

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = self._rpc if scope["type"] == "http" and is_rpc(scope["path"]) else self._routes
        await answering(scope, receive, send)


async def _nothing_here(request: Request, error: Exception) -> JSONResponse:
    told = f"There is nothing at {request.url.path[:200]}: docs/gateway.md lists what there is."
    return JSONResponse({"code": "not_found", "message": told}, 404)


async def _other_method(request: Request, error: Exception) -> JSONResponse:
    told = f"{request.url.path[:200]} does not take {request.method}."
    headers = getattr(error, "headers", None)
    return JSONResponse({"code": "unimplemented", "message": told}, 405, headers)
