"""Health over HTTP: alive (`/livez`, `/healthz`), and ready for work (`/readyz`)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request


class Health:
    """Whether the gateway takes requests."""

    def __init__(self, draining: asyncio.Event) -> None:
        """Ready until `draining` is set."""
        self._draining = draining

    def routes(self) -> list[Route]:
        """Returns the routes, for the gateway's port and for that of its probes."""
        return [
            Route("/healthz", self._alive),
            Route("/livez", self._alive),
            Route("/readyz", self._ready),
        ]

    async def _alive(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def _ready(self, request: Request) -> PlainTextResponse:
        # Services that are away are no reason: requests for them are answered with where they were looked for.
        return PlainTextResponse("draining\n", 503) if self._draining.is_set() else PlainTextResponse("ok\n")
