"""Errors of the mesh: a service, a store or a provider cannot, or not now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from turnwire.common.v1 import error_pb2
from turnwire.errors.base import TurnwireError

if TYPE_CHECKING:
    from collections.abc import Mapping


class ResourceExhausted(TurnwireError):
    """A limit is reached (abstract)."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Overloaded(ResourceExhausted):
    """The service takes no more work now."""

    reason = error_pb2.ERROR_REASON_OVERLOADED
    retryable = True

    def __init__(self, service: str, *, limit: str, retry_after: float = 1.0) -> None:
        """Names the limit and when to come back."""
        super().__init__(
            f"The {service} service takes no more work now ({limit}): come back in {retry_after:g} s.",
            metadata={"service": service, "limit": limit},
            retry_after=retry_after,
        )


class MessageTooLarge(ResourceExhausted):
    """A request is larger than the server takes."""

    reason = error_pb2.ERROR_REASON_MESSAGE_TOO_LARGE
    names_method = True

    def __init__(self, *, size_bytes: int, limit_bytes: int) -> None:
        """Tells both sizes."""
        super().__init__(
            f"The request has {size_bytes} bytes and the server takes {limit_bytes}: "
            "upload large content with ArtifactService.UploadArtifact and name it by id.",
            metadata={"size_bytes": size_bytes, "limit_bytes": limit_bytes},
        )


class SessionQueueFull(ResourceExhausted):
    """The queue of turns of a session is full."""

    reason = error_pb2.ERROR_REASON_SESSION_QUEUE_FULL
    retryable = True

    def __init__(self, session_id: str, *, limit: int) -> None:
        """Tells the limit."""
        super().__init__(
            f"{limit} turns wait in session {session_id} already: wait for one to end.",
            metadata={"session_id": session_id, "limit": limit},
            retry_after=1.0,
        )


class QuotaExhausted(ResourceExhausted):
    """What a tenant may keep is used up."""

    reason = error_pb2.ERROR_REASON_QUOTA_EXHAUSTED

    def __init__(self, resource_type: str, *, used_bytes: int, limit_bytes: int) -> None:
        """Tells both sizes."""
        super().__init__(
            f"The {resource_type}s of this tenant have {used_bytes} bytes of at most {limit_bytes}: remove some first.",
            metadata={"resource_type": resource_type, "used_bytes": used_bytes, "limit_bytes": limit_bytes},
        )


class Unavailable(TurnwireError):
    """A service of the mesh cannot be reached."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
    retryable = True

    def __init__(self, service: str, *, address: str = "", detail: str = "") -> None:
        """Names the service, and where it was looked for."""
        where = f" at {address}" if address else ""
        why = f": {detail}" if detail else ""
        super().__init__(
            f"The {service} service{where} cannot be reached{why}. `turnwire status` shows what runs.",
            metadata={"service": service, "address": address},
        )


class Draining(Unavailable):
    """The process is shutting down."""

    reason = error_pb2.ERROR_REASON_DRAINING

    def __init__(self, *, service: str) -> None:
        """Names the service."""
        TurnwireError.__init__(
            self,
            f"The {service} service is shutting down: resume or retry, another replica or its next start answers.",
            metadata={"service": service},
        )


class StoreUnavailable(Unavailable):
    """The database of a service cannot be reached or refuses to write."""

    reason = error_pb2.ERROR_REASON_STORE_UNAVAILABLE

    def __init__(self, service: str, detail: str) -> None:
        """Tells what the database said."""
        self.detail = detail
        TurnwireError.__init__(
            self,
            f"The database of the {service} service cannot be used: {detail}. `turnwire doctor` looks for the cause.",
            metadata={"service": service},
        )


class ArtifactStoreUnavailable(StoreUnavailable):
    """The object store of artifacts cannot be reached, or refuses."""

    def __init__(self, where: str, detail: str, todo: str) -> None:
        """Tells where it is, what it said, and what to do."""
        self.detail = detail
        self.todo = todo
        TurnwireError.__init__(
            self,
            f"The artifact store {where} cannot be used: {detail}. {todo}.",
            metadata={"service": "tool_executor", "store": where},
        )


class ContentLost(TurnwireError):
    """What an artifact had is not there as it was stored; it will not be there a little later either."""

    code = grpc.StatusCode.DATA_LOSS
    reason = error_pb2.ERROR_REASON_CONTENT_LOST

    def __init__(self, artifact_id: str, how: str) -> None:
        """Says `how` it is: `is missing`."""
        super().__init__(
            f"The content of {artifact_id} {how} in the artifact store, and does not come back. Upload it again, or"
            " bring the store back from a copy.",
            metadata={"artifact_id": artifact_id},
        )


class NotOwner(Unavailable):
    """The process is not (or no longer) the owner of a turn."""

    reason = error_pb2.ERROR_REASON_NOT_OWNER

    def __init__(self, turn_id: str, owner: str = "") -> None:
        """Names the owner where one is known."""
        hint = f"; {owner} is" if owner else ""
        TurnwireError.__init__(
            self,
            f"This process does not own turn {turn_id}{hint}: ask again, the call finds the owner.",
            metadata={"turn_id": turn_id, "owner": owner},
        )


class DeadlineExceeded(TurnwireError):
    """A deadline, or the limit of a step, passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    retryable = True
    names_method = True

    def __init__(self, service: str, *, detail: str = "") -> None:
        """Names the service that was waited for."""
        why = f" ({detail})" if detail else ""
        super().__init__(
            f"The deadline passed before the {service} service had answered{why}: allow more time, or ask for less.",
            metadata={"service": service},
        )


class Cancelled(TurnwireError):
    """The caller went away or cancelled the call."""

    code = grpc.StatusCode.CANCELLED
    reason = error_pb2.ERROR_REASON_CANCELLED
    names_method = True

    def __init__(self, detail: str = "The call was cancelled.") -> None:
        """Tells who cancelled, if known."""
        super().__init__(detail)


class Unimplemented(TurnwireError):
    """The contract has it, this version does not serve it yet."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = error_pb2.ERROR_REASON_UNIMPLEMENTED
    names_method = True

    def __init__(self, what: str, hint: str = "") -> None:
        """Names what is missing, and what to do instead."""
        super().__init__(
            f"This version of Turnwire does not serve {what} yet. {hint}".rstrip(), metadata={"feature": what}
        )


class Internal(TurnwireError):
    """A defect of Turnwire; the log of the service holds the trace under the request id."""

    code = grpc.StatusCode.INTERNAL
    reason = error_pb2.ERROR_REASON_INTERNAL

    def __init__(self, message: str = "", *, service: str = "", request_id: str = "") -> None:
        """Names the service and the request id to look for."""
        where = f" of the {service} service" if service else ""
        under = f" under request id {request_id}" if request_id else ""
        told = message or f"Turnwire has a defect here: the log{where} holds the trace{under}. Please report it."
        super().__init__(told, metadata={"service": service, "request_id": request_id})


class ProviderError(TurnwireError):
    """A provider answered with an error of its own, or with something that is no answer."""

    code = grpc.StatusCode.INTERNAL
    reason = error_pb2.ERROR_REASON_PROVIDER_ERROR

    def __init__(
        self,
        provider_id: str,
        detail: str,
        *,
        model: str = "",
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Tells what the provider said."""
        super().__init__(
            f"Provider {provider_id} {self._verb}: {detail}",
            metadata={"provider_id": provider_id, "model": model, "status": status},
            retry_after=retry_after,
        )

    _verb = "failed"


class ProviderUnavailable(ProviderError):
    """A provider could not be reached, or its connection broke."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE
    retryable = True
    _verb = "is not available"


class ProviderRateLimited(ProviderError):
    """A provider asked to slow down."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED
    retryable = True
    _verb = "asks to slow down"


class Historic(TurnwireError):
    """A reason that stands only in a turn's history, or one that this version does not know."""

    def __init__(
        self,
        message: str,
        *,
        reason: error_pb2.ErrorReason.ValueType,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Keeps the reason and the code it came with."""
        super().__init__(message, metadata=metadata)
        self.reason = reason
        self.code = code
