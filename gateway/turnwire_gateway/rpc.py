"""The contract over HTTP: `POST /package.Service/Method`, in the protocol that its content type names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import Response

from turnwire.errors import TurnwireError, Unimplemented
from turnwire_gateway.bodies import ClientGone
from turnwire_gateway.methods import METHODS
from turnwire_gateway.protocols import connect, grpc_web
from turnwire_gateway.upstream import Caller

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from turnwire_gateway.upstream import Upstreams

_ACCEPTED = ", ".join([*connect.UNARY, *connect.STREAMS, *grpc_web.KINDS])


def is_rpc(path: str) -> bool:
    """True for the paths that the contract has, or could have."""
    return path[1:] in METHODS or path.startswith("/turnwire.")


class Rpc:
    """Answers the calls of the contract."""

    def __init__(self, upstreams: Upstreams, message_bytes: int) -> None:
        """`message_bytes` bounds a request, unpacked."""
        self._upstreams = upstreams
        self._limit = message_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a call."""
        try:
            response = await self._response(scope, Headers(scope=scope), receive)
        except ClientGone:
            return
        await response(scope, receive, send)

    async def _response(self, scope: Scope, headers: Headers, receive: Receive) -> ASGIApp:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] != "POST":
            return Response("Calls are POSTs.\n", 405, {"allow": "POST"})
        known = kind in connect.UNARY or kind in connect.STREAMS or kind in grpc_web.KINDS
        if not known:
            return Response(f"The content type is one of: {_ACCEPTED}.\n", 415, {"accept-post": _ACCEPTED})
        name = scope["path"][1:]
        method = METHODS.get(name)
        refusal: TurnwireError | None = None
        if method is None:
            refusal = Unimplemented(f"the method {name[:200]}", "Look at its name, and at the version of the server.")
        try:
            caller = Caller.of(headers)
        except TurnwireError as error:
            caller, refusal = Caller((), ""), refusal or error
        if kind in grpc_web.KINDS:
            return await grpc_web.respond(
                method, kind, headers, receive, self._upstreams, caller, self._limit, refusal=refusal
            )
        if method is None or refusal is not None:
            assert refusal is not None
            return connect.error_response(refusal.to_status(), 404 if method is None else None)
        return await connect.respond(method, kind, headers, receive, self._upstreams, caller, self._limit)
