"""Errors of a state: the request is good, and what it meets does not allow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from turnwire.common.v1 import error_pb2
from turnwire.errors.base import TurnwireError, listed

if TYPE_CHECKING:
    from collections.abc import Sequence


class FailedPrecondition(TurnwireError):
    """The state does not allow the request now (abstract)."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class SessionBusy(FailedPrecondition):
    """Another turn of the session runs or awaits input."""

    reason = error_pb2.ERROR_REASON_SESSION_BUSY

    def __init__(self, *, session_id: str, turn_id: str) -> None:
        """Names the turn that is in the way."""
        super().__init__(
            f"Session {session_id} is busy with turn {turn_id}: wait for its end, answer it, or cancel it.",
            metadata={"session_id": session_id, "turn_id": turn_id},
        )


class TurnFinished(FailedPrecondition):
    """The turn has ended."""

    reason = error_pb2.ERROR_REASON_TURN_FINISHED

    def __init__(self, turn_id: str, status: str) -> None:
        """Names how it ended."""
        super().__init__(
            f"Turn {turn_id} has ended ({status}) and takes no input: run another turn.",
            metadata={"turn_id": turn_id, "status": status},
        )


class TurnNotAwaitingInput(FailedPrecondition):
    """The turn does not wait for what was given."""

    reason = error_pb2.ERROR_REASON_TURN_NOT_AWAITING_INPUT

    def __init__(self, turn_id: str, call_id: str = "") -> None:
        """Names the call that was answered, if one was."""
        what = f"an answer to call {call_id}" if call_id else "input"
        super().__init__(
            f"Turn {turn_id} does not wait for {what}: its last `turn_awaiting_input` event names what it waits for.",
            metadata={"turn_id": turn_id, "call_id": call_id},
        )


class TurnCancelledEarly(FailedPrecondition):
    """The turn was cancelled before it came."""

    reason = error_pb2.ERROR_REASON_TURN_CANCELLED_EARLY

    def __init__(self, turn_id: str) -> None:
        """Names the turn."""
        super().__init__(
            f"Turn {turn_id} was cancelled before it arrived and never starts: use a new turn_id.",
            metadata={"turn_id": turn_id},
        )


class TurnDeleted(FailedPrecondition):
    """The turn's id belongs to a deleted turn."""

    reason = error_pb2.ERROR_REASON_TURN_DELETED

    def __init__(self, turn_id: str) -> None:
        """Names the turn."""
        super().__init__(
            f"Turn {turn_id} was deleted; its id is kept from use for 30 days: use a new turn_id.",
            metadata={"turn_id": turn_id},
        )


class ExecutionNotInDoubt(FailedPrecondition):
    """There is nothing to decide about a tool call."""

    reason = error_pb2.ERROR_REASON_EXECUTION_NOT_IN_DOUBT

    def __init__(self, call_id: str, state: str) -> None:
        """Names how the call stands."""
        super().__init__(
            f"There is nothing to decide about call {call_id} ({state}): only an outcome that was lost, and about "
            "which nobody has decided, can be resolved.",
            metadata={"call_id": call_id, "state": state},
        )


class ResourceInUse(FailedPrecondition):
    """A resource is in use and cannot be deleted or changed."""

    reason = error_pb2.ERROR_REASON_RESOURCE_IN_USE

    def __init__(self, resource_type: str, name: str, *, used_by: str, told: str = "") -> None:
        """Names what uses it; `told` says it better than that where it is no other resource."""
        super().__init__(
            told or f"The {resource_type} {name!r} is in use by {used_by}.",
            metadata={"resource_type": resource_type, "resource_name": name, "used_by": used_by},
        )


class NotServed(FailedPrecondition):
    """No configured provider serves what was named."""

    reason = error_pb2.ERROR_REASON_NOT_SERVED

    def __init__(self, resource_type: str, name: str, available: Sequence[str] = ()) -> None:
        """Names what is served instead."""
        choice = listed(available)
        hint = f" Served are: {choice}." if choice else " No provider serves any: see `providers` in turnwire.yaml."
        super().__init__(
            f"No configured provider serves the {resource_type} {name!r}.{hint}",
            metadata={"resource_type": resource_type, "resource_name": name, "available": choice},
        )


class Ambiguous(FailedPrecondition):
    """One id is served by several providers."""

    reason = error_pb2.ERROR_REASON_AMBIGUOUS

    def __init__(self, name: str, available: Sequence[str]) -> None:
        """Names the full ids."""
        super().__init__(
            f"{name!r} is served by several providers: address it as one of {listed(available)}.",
            metadata={"resource_name": name, "available": listed(available)},
        )


class ProviderUnauthenticated(FailedPrecondition):
    """A provider refused the service's own credential."""

    reason = error_pb2.ERROR_REASON_PROVIDER_UNAUTHENTICATED

    def __init__(self, provider_id: str, detail: str) -> None:
        """Tells what the provider said."""
        super().__init__(
            f"Provider {provider_id} refused our credential: {detail}. Check its `api_key` in turnwire.yaml.",
            metadata={"provider_id": provider_id},
        )


class WeightsMissing(FailedPrecondition):
    """The weights of a model are not on this machine."""

    reason = error_pb2.ERROR_REASON_WEIGHTS_MISSING

    def __init__(self, model: str, file: str, *, hint: str = "") -> None:
        """Names the file that is looked for, and what to do when it is none that can be pulled."""
        todo = hint or f"run `turnwire models pull {model}`"
        super().__init__(
            f"The weights of {model} are not on this machine ({file}): {todo}.",
            metadata={"model": model, "file": file},
        )


class IsolationUnavailable(FailedPrecondition):
    """No isolation for model-written code is to be had."""

    reason = error_pb2.ERROR_REASON_ISOLATION_UNAVAILABLE

    def __init__(self, missing: str) -> None:
        """Names what is missing."""
        super().__init__(
            f"Model-written code cannot be isolated on this machine: {missing}. `turnwire doctor` tells more.",
            metadata={"missing": missing},
        )


class SchemaUnsupported(FailedPrecondition):
    """A database was written by a version that this one does not know."""

    reason = error_pb2.ERROR_REASON_SCHEMA_UNSUPPORTED

    def __init__(self, service: str, *, schema_version: int, supported: int, where: str) -> None:
        """Tells both versions and the database."""
        super().__init__(
            f"The database of the {service} service ({where}) has schema version {schema_version}, and this Turnwire "
            f"knows up to {supported}: run the newer Turnwire again, or give this one another --data-dir "
            "or `store.url`.",
            metadata={"service": service, "schema_version": schema_version, "supported": supported},
        )


class SequenceOutOfRange(TurnwireError):
    """A position lies beyond every number the turn can have shown."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = error_pb2.ERROR_REASON_SEQUENCE_OUT_OF_RANGE

    def __init__(self, turn_id: str, *, after_sequence: int, last_sequence: int) -> None:
        """Tells both numbers."""
        super().__init__(
            f"after_sequence {after_sequence} lies beyond turn {turn_id}, which has come to {last_sequence}: "
            "resume with the last sequence you have seen.",
            metadata={"turn_id": turn_id, "after_sequence": after_sequence, "last_sequence": last_sequence},
        )
