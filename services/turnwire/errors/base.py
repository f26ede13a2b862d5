"""What every error of Turnwire carries, and how it travels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from turnwire.common.v1 import error_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnwire.errors.mesh import Unavailable

DOMAIN = "turnwire"
"""The domain of `google.rpc.ErrorInfo`."""
MAX_MESSAGE = 1_000
"""So many characters of a message travel: HTTP/2 peers refuse trailers of more than 8 KiB."""
_MAX_STATUS_BYTES = 4_500


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing that is wrong with a request: where, and what was expected."""

    field: str
    description: str


class TurnwireError(Exception):
    """An error that says what happened, where, and what to do next."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: error_pb2.ErrorReason.ValueType = error_pb2.ERROR_REASON_UNSPECIFIED
    retryable: ClassVar[bool] = False
    """True when the same request may succeed later without a change."""
    names_method: ClassVar[bool] = False
    """True when the server adds `method` to the metadata."""
    by_reason: ClassVar[dict[int, type[TurnwireError]]] = {}

    def __init_subclass__(cls) -> None:
        """Enters a class under its reason, so that a status finds it again."""
        if "reason" in cls.__dict__:
            TurnwireError.by_reason[cls.reason] = cls

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, object] | None = None,
        retry_after: float | None = None,
        violations: Iterable[FieldViolation] = (),
        resource: tuple[str, str] | None = None,
    ) -> None:
        """Keeps the facts; empty metadata is left out."""
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in (metadata or {}).items() if value not in (None, "")}
        self.retry_after = retry_after
        self.violations = tuple(violations)
        self.resource = resource

    @property
    def reason_name(self) -> str:
        """The full name of the reason, as it travels."""
        value = error_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(self.reason)
        return value.name if value is not None else str(self.reason)

    def to_status(self) -> status_pb2.Status:
        """Returns the status with ErrorInfo and, where they apply, BadRequest, RetryInfo and ResourceInfo."""
        status = status_pb2.Status(code=_number(self.code), message=shortened(self.message, MAX_MESSAGE))
        info = error_details_pb2.ErrorInfo(reason=self.reason_name, domain=DOMAIN)
        for key, value in self.metadata.items():
            info.metadata[key] = shortened(value, 400)
        status.details.add().Pack(info)
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(math.ceil(self.retry_after * 1000))
            status.details.add().Pack(retry)
        if self.resource is not None:
            kind, name = self.resource
            resource = error_details_pb2.ResourceInfo(resource_type=kind, resource_name=shortened(name, 400))
            status.details.add().Pack(resource)
        if self.violations:
            room = _MAX_STATUS_BYTES - status.ByteSize()
            status.details.add().Pack(_bad_request(self.violations, room))
        return status

    def to_failure(self) -> error_pb2.Failure:
        """Returns the form in which a turn's history keeps the error."""
        return error_pb2.Failure(
            reason=self.reason, message=self.message, retryable=self.retryable, metadata=self.metadata
        )

    @staticmethod
    def cut(service: str) -> Unavailable:
        """Returns the error of a stream that ended without the message that ends it."""
        from turnwire.errors.mesh import Unavailable  # its module is made of this class

        return Unavailable(service, detail="its stream was cut")

    @classmethod
    def restored(
        cls,
        message: str,
        *,
        metadata: Mapping[str, object] | None = None,
        retry_after: float | None = None,
        violations: Iterable[FieldViolation] = (),
        resource: tuple[str, str] | None = None,
    ) -> TurnwireError:
        """Returns an error of this class from what has travelled, without the arguments it was made from."""
        error = cls.__new__(cls)
        TurnwireError.__init__(
            error, message, metadata=metadata, retry_after=retry_after, violations=violations, resource=resource
        )
        return error


def shortened(text: str, most: int) -> str:
    """Returns a text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def listed(names: Sequence[str], most: int = 20) -> str:
    """Returns names as a person reads them; empty for none, and cut where there are many."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _number(code: grpc.StatusCode) -> int:
    number, _ = code.value
    return number


def _bad_request(violations: Sequence[FieldViolation], room: int) -> error_details_pb2.BadRequest:
    """All violations; of a hostile request with more than fit into trailers the last are only counted."""
    bad_request = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        entry = bad_request.field_violations.add(
            field=shortened(violation.field, 200), description=shortened(violation.description, 400)
        )
        if bad_request.ByteSize() > room - 100:
            entry.field = ""
            entry.description = f"and {len(violations) - index} more violations"
            break
    return bad_request
