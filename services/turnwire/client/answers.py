"""Answers of unary calls, their failures in Turnwire's words."""

from __future__ import annotations

from typing import Any

import grpc

from turnwire.errors import from_rpc_error


async def answered(call: Any, *, service: str) -> Any:
    """Returns what a call answers; `service` is whom an error names that the server has not named.

    Raises:
        TurnwireError: the call failed.
    """
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error, service=service) from error
