"""Errors of a request: what was asked cannot be, whatever the state of the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from turnwire.common.v1 import error_pb2
from turnwire.errors.base import FieldViolation, TurnwireError, listed, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class InvalidArgument(TurnwireError):
    """One or more fields of a request are wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = error_pb2.ERROR_REASON_INVALID_REQUEST
    names_method = True

    def __init__(self, violations: Sequence[FieldViolation], *, metadata: Mapping[str, object] | None = None) -> None:
        """Tells all violations."""
        told = "; ".join(f"{violation.field} {violation.description}" for violation in violations)
        super().__init__(f"The request is wrong: {told}.", violations=violations, metadata=metadata)

    @staticmethod
    def one(field: str, description: str) -> InvalidArgument:
        """Returns the error of a request with one violation."""
        return InvalidArgument([FieldViolation(field, description)])


class MalformedMessage(InvalidArgument):
    """The bytes of a request are no message of the method's type."""

    reason = error_pb2.ERROR_REASON_MALFORMED_MESSAGE

    def __init__(self, type_name: str) -> None:
        """Names the type that was expected."""
        TurnwireError.__init__(
            self, f"The request is no {type_name}: its bytes cannot be parsed. Generate the client from our protos."
        )


class ContextLengthExceeded(InvalidArgument):
    """A prompt does not fit the context window of its model."""

    reason = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    names_method = False

    def __init__(self, model: str, *, prompt_tokens: int, context_tokens: int) -> None:
        """Tells both numbers; a window of 0 is one that the provider does not tell."""
        takes = f"{context_tokens}, the answer included" if context_tokens else "fewer"
        TurnwireError.__init__(
            self,
            f"The prompt has {prompt_tokens} tokens and {model} takes {takes}: "
            "shorten it, or choose a model with a larger window.",
            metadata={"model": model, "prompt_tokens": prompt_tokens, "context_tokens": context_tokens},
        )


class ModelCapability(InvalidArgument):
    """A model or its provider cannot do what was asked."""

    reason = error_pb2.ERROR_REASON_MODEL_CAPABILITY
    names_method = False

    def __init__(self, model: str, feature: str) -> None:
        """Names the feature that is missing."""
        TurnwireError.__init__(
            self,
            f"{model} does not support {feature}: leave it out, or choose another model.",
            metadata={"model": model, "feature": feature},
        )


class DocumentRefused(InvalidArgument):
    """A document, URL or attachment was refused."""

    reason = error_pb2.ERROR_REASON_DOCUMENT_REFUSED
    names_method = False

    def __init__(self, document: str, why: str, *, limit: str = "") -> None:
        """Tells why."""
        TurnwireError.__init__(self, f"{document} was refused: {why}.", metadata={"document": document, "limit": limit})


class NotFound(TurnwireError):
    """A resource does not exist in the caller's tenant."""

    code = grpc.StatusCode.NOT_FOUND
    reason = error_pb2.ERROR_REASON_NOT_FOUND

    def __init__(self, resource_type: str, name: str, available: Sequence[str] = ()) -> None:
        """Names it, and what there is instead where the choice is short."""
        choice = listed(available)
        hint = f" There are: {choice}." if choice else ""
        super().__init__(
            f"There is no {resource_type} {shortened(name, 200)!r}.{hint}",
            metadata={"resource_type": resource_type, "resource_name": name, "available": choice},
            resource=(resource_type, name),
        )


class AlreadyExists(TurnwireError):
    """A name or id is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = error_pb2.ERROR_REASON_ALREADY_EXISTS

    def __init__(self, resource_type: str, name: str) -> None:
        """Names it."""
        super().__init__(
            f"The {resource_type} {name!r} exists already: choose another name, or change that one.",
            metadata={"resource_type": resource_type, "resource_name": name},
            resource=(resource_type, name),
        )


class IdempotencyConflict(AlreadyExists):
    """A request id or turn id was used before with another request."""

    reason = error_pb2.ERROR_REASON_IDEMPOTENCY_CONFLICT

    def __init__(self, field: str, value: str) -> None:
        """Names the field, `request_id` or `turn_id`, and its value."""
        TurnwireError.__init__(
            self,
            f"{field} {value!r} was used before with another request: mint a new one for a new request.",
            metadata={field: value},
            resource=(field, value),
        )


class EtagMismatch(TurnwireError):
    """A resource was changed by somebody else."""

    code = grpc.StatusCode.ABORTED
    reason = error_pb2.ERROR_REASON_ETAG_MISMATCH

    def __init__(self, resource_type: str, name: str, *, etag: str) -> None:
        """Names the resource and its current etag."""
        super().__init__(
            f"The {resource_type} {name!r} was changed meanwhile: read it again and repeat the change.",
            metadata={"resource_type": resource_type, "resource_name": name, "etag": etag},
            resource=(resource_type, name),
        )


class Unauthenticated(TurnwireError):
    """A credential is missing or no good."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = error_pb2.ERROR_REASON_UNAUTHENTICATED
    names_method = True


class PermissionDenied(TurnwireError):
    """A credential is good, but does not allow the method."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = error_pb2.ERROR_REASON_PERMISSION_DENIED
    names_method = True


class ToolDenied(PermissionDenied):
    """A person or a policy denied a tool call."""

    reason = error_pb2.ERROR_REASON_TOOL_DENIED
    names_method = False

    def __init__(self, tool: str, call_id: str, why: str) -> None:
        """Tells who denied it."""
        super().__init__(f"The call of {tool} was denied: {why}.", metadata={"tool": tool, "call_id": call_id})
