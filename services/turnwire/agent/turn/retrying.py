"""Failures of other services that pass, and what a step does about them: each further try is an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from turnwire.agent.log.writer import draft
from turnwire.agent.v1 import event_pb2
from turnwire.common.v1 import error_pb2
from turnwire.runtime.retrying import delay_of

if TYPE_CHECKING:
    from turnwire.agent.v1 import step_pb2, turn_pb2
    from turnwire.errors import TurnwireError

_log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 5
"""How often a step is tried whose failures are of the kind that passes: for as long as a service takes to start."""
_PASSING = frozenset(
    {
        error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
        error_pb2.ERROR_REASON_DRAINING,
        error_pb2.ERROR_REASON_OVERLOADED,
        error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
        error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED,
        error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
    }
)


def passes(error: TurnwireError) -> bool:
    """True when the same request may succeed a little later."""
    return error.reason in _PASSING


def failed_or_restarted(turn: turn_pb2.Turn, step: step_pb2.Step, error: TurnwireError) -> event_pb2.StepEvent:
    """Returns what becomes of a step after a failure: another attempt, or its end."""
    failure = error.to_failure()
    _log.warning("step_failed", turn_id=turn.turn_id, step_id=step.step_id, attempt=step.attempt, error=error.message)
    if not passes(error) or step.attempt >= MAX_ATTEMPTS:
        return draft(turn.turn_id, "step_failed", event_pb2.StepFailed(failure=failure), step.step_id)
    restarted = event_pb2.StepRestarted(attempt=step.attempt + 1, cause=failure)
    restarted.delay.FromMilliseconds(int(delay_of(error, step.attempt) * 1000))
    return draft(turn.turn_id, "step_restarted", restarted, step.step_id)
