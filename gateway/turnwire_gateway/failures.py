"""Errors of the plain HTTP routes: Connect's JSON, with the HTTP status that belongs to the code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from turnwire.errors import TurnwireError
from turnwire_gateway.bodies import ClientGone
from turnwire_gateway.protocols.connect import error_response
from turnwire_gateway.statuses import status_from

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    Endpoint = Callable[[Request], Awaitable[ASGIApp]]


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers nobody: the caller has left."""


def told(service: str) -> Callable[[Endpoint], Any]:
    """Lets an endpoint raise: what its calls of `service` and its own checks raise becomes the response."""

    def decorated(endpoint: Endpoint) -> Any:
        async def answer(request: Request) -> ASGIApp:
            try:
                return await endpoint(request)
            except ClientGone:
                return nothing
            except (TurnwireError, grpc.RpcError) as error:
                upstreams = request.app.state.upstreams
                return error_response(status_from(error, service=service, address=upstreams.address(service)))

        return answer

    return decorated
