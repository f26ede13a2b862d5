"""Statuses of gRPC, as the protocols of the web write them."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from turnwire.errors import TurnwireError, from_rpc_error, from_status, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# Connect's names and HTTP statuses of the codes of gRPC, by number:
# https://connectrpc.com/docs/protocol#error-codes
_CODES: Mapping[int, tuple[str, int]] = {
    1: ("canceled", 499),
    2: ("unknown", 500),
    3: ("invalid_argument", 400),
    4: ("deadline_exceeded", 504),
    5: ("not_found", 404),
    6: ("already_exists", 409),
    7: ("permission_denied", 403),
    8: ("resource_exhausted", 429),
    9: ("failed_precondition", 400),
    10: ("aborted", 409),
    11: ("out_of_range", 400),
    12: ("unimplemented", 501),
    13: ("internal", 500),
    14: ("unavailable", 503),
    15: ("data_loss", 500),
    16: ("unauthenticated", 401),
}
_UNKNOWN = _CODES[2]


def status_from(error: Exception, *, service: str, address: str = "") -> status_pb2.Status:
    """Returns the status of a failed call as its service sent it, or one of ours where none came with it."""
    if isinstance(error, TurnwireError):
        return error.to_status()
    failed = cast("grpc.aio.AioRpcError", error)
    sent = status_of(failed.trailing_metadata())
    if sent is not None:
        return sent
    return from_rpc_error(failed, service=service, address=address).to_status()


def typed_from(error: Exception, *, service: str, address: str = "") -> TurnwireError:
    """Returns the typed error of a failed call."""
    if isinstance(error, TurnwireError):
        return error
    return from_rpc_error(cast("grpc.RpcError", error), service=service, address=address)


def http_status(code: int) -> int:
    """Returns the HTTP status of a code of gRPC."""
    return _CODES.get(code, _UNKNOWN)[1]


def code_name(code: int) -> str:
    """Returns Connect's name of a code of gRPC."""
    return _CODES.get(code, _UNKNOWN)[0]


def error_object(status: status_pb2.Status) -> dict[str, Any]:
    """Returns a status as Connect writes it in JSON."""
    told: dict[str, Any] = {"code": code_name(status.code)}
    if status.message:
        told["message"] = status.message
    if status.details:
        told["details"] = [_detail(detail) for detail in status.details]
    return told


def error_json(status: status_pb2.Status) -> bytes:
    """Returns `error_object` as bytes."""
    return json.dumps(error_object(status), ensure_ascii=False).encode()


def retry_seconds(status: status_pb2.Status) -> float | None:
    """Returns when the service wants to be asked again, where it says so."""
    error = from_status(status)
    return error.retry_after if error is not None else None


_READABLE = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.ResourceInfo,
)


def _detail(detail: Any) -> dict[str, Any]:
    name: str = detail.TypeName()
    told: dict[str, Any] = {"type": name, "value": base64.b64encode(detail.value).rstrip(b"=").decode()}
    for known in _READABLE:
        if known.DESCRIPTOR.full_name == name:
            told["debug"] = json_format.MessageToDict(known.FromString(detail.value))
    return told
