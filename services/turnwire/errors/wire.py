"""Errors read back from what travelled: a status in the trailers of a call, or a failure in a turn's history."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from turnwire.common.v1 import error_pb2
from turnwire.errors.base import DOMAIN, FieldViolation, TurnwireError, shortened
from turnwire.errors.mesh import DeadlineExceeded, Historic, Internal, Overloaded, Unavailable, Unimplemented
from turnwire.errors.requests import InvalidArgument, NotFound, PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Iterable

_DETAILS_KEY = "grpc-status-details-bin"
_CUT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_NOT_CONNECTED = "failed to connect to all addresses"
"""How gRPC begins what it says of a call that found no connection; it has no code of its own for that."""
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_failure(failure: error_pb2.Failure) -> TurnwireError:
    """Returns the error that a failure of a turn's history was made from."""
    cls = TurnwireError.by_reason.get(failure.reason)
    if cls is None:
        return Historic(failure.message, reason=failure.reason, metadata=failure.metadata)
    return cls.restored(failure.message, metadata=failure.metadata)


def from_status(status: status_pb2.Status) -> TurnwireError | None:
    """Returns the error of a status; None when it is none of ours."""
    info: error_details_pb2.ErrorInfo | None = None
    retry_after: float | None = None
    violations: list[FieldViolation] = []
    resource: tuple[str, str] | None = None
    for detail in status.details:
        match detail.TypeName():
            case "google.rpc.ErrorInfo":
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
            case "google.rpc.RetryInfo":
                retry = error_details_pb2.RetryInfo.FromString(detail.value)
                retry_after = retry.retry_delay.ToMilliseconds() / 1000
            case "google.rpc.BadRequest":
                bad_request = error_details_pb2.BadRequest.FromString(detail.value)
                violations = [FieldViolation(entry.field, entry.description) for entry in bad_request.field_violations]
            case "google.rpc.ResourceInfo":
                named = error_details_pb2.ResourceInfo.FromString(detail.value)
                resource = (named.resource_type, named.resource_name)
            case _:
                pass  # a detail of somebody else
    if info is None or info.domain != DOMAIN:
        return None
    value = error_pb2.ErrorReason.DESCRIPTOR.values_by_name.get(info.reason)
    reason = value.number if value is not None else error_pb2.ERROR_REASON_UNSPECIFIED
    cls = TurnwireError.by_reason.get(reason)
    if cls is None:
        return Historic(
            status.message,
            reason=cast("error_pb2.ErrorReason.ValueType", reason),
            code=_CODES.get(status.code, grpc.StatusCode.UNKNOWN),
            metadata=info.metadata,
        )
    return cls.restored(
        status.message, metadata=info.metadata, retry_after=retry_after, violations=violations, resource=resource
    )


def status_of(trailing_metadata: Iterable[tuple[str, str | bytes]] | None) -> status_pb2.Status | None:
    """Returns the `google.rpc.Status` in a call's trailers; None when there is none that can be read."""
    for key, value in trailing_metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def from_rpc_error(error: grpc.RpcError, *, service: str, address: str = "") -> TurnwireError:
    """Returns the typed error of a failed call, also of one that carries no details of ours.

    Args:
        error: what the stub raised.
        service: the service that was called, to name it where nothing answered.
        address: where it was called.
    """
    if isinstance(error, TurnwireError):  # the channel's own interceptor raised it, typed already
        return error
    failed = cast("grpc.aio.AioRpcError", error)
    status = status_of(failed.trailing_metadata())
    restored = from_status(status) if status is not None else None
    if restored is not None:
        return restored
    return _plain(failed.code(), shortened(failed.details() or "", 300), service, address)


def may_have_arrived(error: grpc.RpcError) -> bool:
    """True for a failed call that its service may have begun with: it was cut, or nothing was heard of it in time.

    False where the service itself refused it, and where there was no connection to send it over.
    """
    if isinstance(error, TurnwireError):
        return False  # the channel's own interceptor raised it
    failed = cast("grpc.aio.AioRpcError", error)
    if status_of(failed.trailing_metadata()) is not None or failed.code() not in _CUT:
        return False
    return not (failed.details() or "").startswith(_NOT_CONNECTED)


def _plain(code: grpc.StatusCode, details: str, service: str, address: str) -> TurnwireError:
    """The error of a status that gRPC itself made, or a server that is none of ours."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(service, address=address, detail=details)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(service)
        case grpc.StatusCode.CANCELLED:
            # Not by us, or there were no status: a server that begins to stop cuts what it has not begun.
            return Unavailable(service, address=address, detail=f"it cut the call {details}".rstrip())
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented(f"this RPC of the {service} service", details)
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(f"The {service} service refused the credential: {details}")
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(f"The {service} service refused the call: {details}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(service, limit=details)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgument.restored(f"The {service} service refused the request: {details}")
        case grpc.StatusCode.NOT_FOUND:
            return NotFound.restored(f"The {service} service did not find it: {details}")
        case _:
            return Internal(f"The {service} service failed with {code.name}: {details}", service=service)
