"""The errors of Turnwire, one tree: each class fixes a gRPC code and a reason of the contract.

A message says what happened, where, and what to do next. One interceptor turns an error into a status, and
`from_rpc_error` turns a status back into the same class.
"""

# TurnwireError
# ├── InvalidArgument            INVALID_ARGUMENT     INVALID_REQUEST, all violations at once
# │   ├── MalformedMessage                            the bytes are no message
# │   ├── ContextLengthExceeded                       the prompt does not fit the model
# │   ├── ModelCapability                             the model cannot do that
# │   └── DocumentRefused                             a document, URL or attachment
# ├── NotFound                   NOT_FOUND
# ├── AlreadyExists              ALREADY_EXISTS
# │   └── IdempotencyConflict                         the id was used with another body
# ├── EtagMismatch               ABORTED
# ├── Unauthenticated            UNAUTHENTICATED
# ├── PermissionDenied           PERMISSION_DENIED
# │   └── ToolDenied
# ├── FailedPrecondition         FAILED_PRECONDITION  (abstract)
# │   ├── SessionBusy, TurnFinished, TurnNotAwaitingInput, TurnCancelledEarly, TurnDeleted
# │   ├── ResourceInUse, NotServed, Ambiguous, ProviderUnauthenticated, ExecutionNotInDoubt
# │   └── WeightsMissing, IsolationUnavailable, SchemaUnsupported
# ├── SequenceOutOfRange         OUT_OF_RANGE
# ├── ResourceExhausted          RESOURCE_EXHAUSTED   (abstract)
# │   └── Overloaded, MessageTooLarge, SessionQueueFull, QuotaExhausted
# ├── Unavailable                UNAVAILABLE          SERVICE_UNAVAILABLE: retry with back-off
# │   ├── Draining, NotOwner
# │   └── StoreUnavailable
# │       └── ArtifactStoreUnavailable                the object store of artifacts
# ├── ContentLost                DATA_LOSS            what an artifact had is not there any more
# ├── DeadlineExceeded           DEADLINE_EXCEEDED
# ├── Cancelled                  CANCELLED
# ├── Unimplemented              UNIMPLEMENTED
# ├── Internal                   INTERNAL             a defect of Turnwire
# ├── ProviderError              INTERNAL             a provider answered with an error
# │   ├── ProviderUnavailable    UNAVAILABLE
# │   └── ProviderRateLimited    RESOURCE_EXHAUSTED
# └── Historic                   as it came           a reason that only stands in a turn's history, or a newer one

from turnwire.errors.base import DOMAIN, FieldViolation, TurnwireError
from turnwire.errors.mesh import (
    ArtifactStoreUnavailable,
    Cancelled,
    ContentLost,
    DeadlineExceeded,
    Draining,
    Historic,
    Internal,
    MessageTooLarge,
    NotOwner,
    Overloaded,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    QuotaExhausted,
    ResourceExhausted,
    SessionQueueFull,
    StoreUnavailable,
    Unavailable,
    Unimplemented,
)
from turnwire.errors.requests import (
    AlreadyExists,
    ContextLengthExceeded,
    DocumentRefused,
    EtagMismatch,
    IdempotencyConflict,
    InvalidArgument,
    MalformedMessage,
    ModelCapability,
    NotFound,
    PermissionDenied,
    ToolDenied,
    Unauthenticated,
)
from turnwire.errors.states import (
    Ambiguous,
    ExecutionNotInDoubt,
    FailedPrecondition,
    IsolationUnavailable,
    NotServed,
    ProviderUnauthenticated,
    ResourceInUse,
    SchemaUnsupported,
    SequenceOutOfRange,
    SessionBusy,
    TurnCancelledEarly,
    TurnDeleted,
    TurnFinished,
    TurnNotAwaitingInput,
    WeightsMissing,
)
from turnwire.errors.wire import from_failure, from_rpc_error, from_status, may_have_arrived, status_of

__all__ = [
    "DOMAIN",
    "AlreadyExists",
    "Ambiguous",
    "ArtifactStoreUnavailable",
    "Cancelled",
    "ContentLost",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "DocumentRefused",
    "Draining",
    "EtagMismatch",
    "ExecutionNotInDoubt",
    "FailedPrecondition",
    "FieldViolation",
    "Historic",
    "IdempotencyConflict",
    "Internal",
    "InvalidArgument",
    "IsolationUnavailable",
    "MalformedMessage",
    "MessageTooLarge",
    "ModelCapability",
    "NotFound",
    "NotOwner",
    "NotServed",
    "Overloaded",
    "PermissionDenied",
    "ProviderError",
    "ProviderRateLimited",
    "ProviderUnauthenticated",
    "ProviderUnavailable",
    "QuotaExhausted",
    "ResourceExhausted",
    "ResourceInUse",
    "SchemaUnsupported",
    "SequenceOutOfRange",
    "SessionBusy",
    "SessionQueueFull",
    "StoreUnavailable",
    "ToolDenied",
    "TurnCancelledEarly",
    "TurnDeleted",
    "TurnFinished",
    "TurnNotAwaitingInput",
    "TurnwireError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "WeightsMissing",
    "from_failure",
    "from_rpc_error",
    "from_status",
    "may_have_arrived",
    "status_of",
]
