"""The console: one page and what it needs, out of the package, with a policy that lets it load nothing else."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

_FOLDER = "console"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """Returns the routes of the page; its files are read once."""
    routes: list[Route] = []
    for file in files("turnwire_gateway").joinpath(_FOLDER).iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is None:
            continue
        path = "/" if file.name == "index.html" else f"/{_FOLDER}/{file.name}"
        routes.append(Route(path, _Static(file.read_bytes(), kind).answer, methods=["GET"]))
    return routes


class _Static:
    """One file; a browser that has it is told so."""

    def __init__(self, content: bytes, kind: str) -> None:
        self._content = content
        self._headers = _HEADERS | {"content-type": kind, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def answer(self, request: Request) -> Response:
        if request.headers.get("if-none-match") == self._headers["etag"]:
            return Response(status_code=304, headers=_HEADERS | {"etag": self._headers["etag"]})
        return Response(self._content, headers=self._headers)
