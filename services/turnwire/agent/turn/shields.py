"""Shields of the safety service, asked for a verdict, and what the agent makes of one that cannot judge."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import structlog

from turnwire.agent.turn.retrying import MAX_ATTEMPTS, passes
from turnwire.agent.v1 import agent_pb2
from turnwire.common.v1 import error_pb2, message_pb2, shield_pb2
from turnwire.errors import TurnwireError, from_rpc_error
from turnwire.runtime.failpoints import Boundary
from turnwire.runtime.retrying import delay_of
from turnwire.safety.v1 import safety_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceStub

_log = structlog.get_logger(__name__)

POINTS = (
    shield_pb2.SHIELD_POINT_INPUT,
    shield_pb2.SHIELD_POINT_OUTPUT,
    shield_pb2.SHIELD_POINT_TOOL_ARGUMENTS,
    shield_pb2.SHIELD_POINT_TOOL_RESULT,
)
"""Where the agent has shields run."""
_BOUNDARIES = {
    point: Boundary(f"agent.shields.{shield_pb2.ShieldPoint.Name(point).removeprefix('SHIELD_POINT_').lower()}")
    for point in POINTS
}
_SECONDS = 60.0
_HELD_BACK = "This could not be checked, so it is held back. Try again later."


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the shields at one point said."""

    verdicts: list[shield_pb2.ShieldVerdict]
    released: list[message_pb2.Message]
    """What passes, after redaction; nothing where a verdict is of the level ERROR."""

    @property
    def blocked(self) -> bool:
        """True when nothing passes."""
        return any(verdict.level == shield_pb2.VIOLATION_LEVEL_ERROR for verdict in self.verdicts)


class Shields:
    """Asks shields for one turn. Fails closed, unless the agent says otherwise."""

    def __init__(self, stub: SafetyServiceStub, policy: agent_pb2.ShieldFailurePolicy.ValueType) -> None:
        """`policy` says what becomes of what cannot be judged."""
        self._stub = stub
        self._fails_open = policy == agent_pb2.SHIELD_FAILURE_POLICY_OPEN

    async def judge(
        self,
        shield_ids: Sequence[str],
        point: shield_pb2.ShieldPoint.ValueType,
        messages: Sequence[message_pb2.Message],
        *,
        turn_id: str,
        call_id: str = "",
    ) -> Judgement:
        """Returns what the shields say of some messages; never raises because one of them cannot."""
        request = safety_service_pb2.RunShieldsRequest(
            shield_ids=shield_ids, point=point, messages=messages, turn_id=turn_id, call_id=call_id
        )
        try:
            response = await self._asked(request)
        except TurnwireError as error:
            _log.warning("shields_unavailable", turn_id=turn_id, shields=list(shield_ids), error=error.message)
            response = safety_service_pb2.RunShieldsResponse(
                verdicts=[_unavailable(shield_id, error) for shield_id in shield_ids]
            )
        verdicts = [self._taken(verdict) for verdict in response.verdicts]
        judgement = Judgement(verdicts, list(response.redacted) or list(messages))
        return Judgement(verdicts, []) if judgement.blocked else judgement

    async def _asked(self, request: safety_service_pb2.RunShieldsRequest) -> safety_service_pb2.RunShieldsResponse:
        attempt = 1
        while True:
            try:
                async with _BOUNDARIES[request.point]:
                    return await self._stub.RunShields(request, timeout=_SECONDS)
            except grpc.RpcError as raised:
                error = from_rpc_error(raised, service="safety")
                if not passes(error) or attempt >= MAX_ATTEMPTS:
                    raise error from raised
                await asyncio.sleep(delay_of(error, attempt))
                attempt += 1

    def _taken(self, verdict: shield_pb2.ShieldVerdict) -> shield_pb2.ShieldVerdict:
        """A shield that could not judge counts as an objection, or as a warning where the agent fails open."""
        if not verdict.HasField("failure"):
            return verdict
        if self._fails_open:
            verdict.level = shield_pb2.VIOLATION_LEVEL_WARN
        else:
            verdict.level = shield_pb2.VIOLATION_LEVEL_ERROR
            verdict.user_message = verdict.user_message or _HELD_BACK
        return verdict


def _unavailable(shield_id: str, error: TurnwireError) -> shield_pb2.ShieldVerdict:
    failure = error_pb2.Failure(
        reason=error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE,
        message=f"The shield {shield_id} could not judge: {error.message}",
        retryable=True,
        metadata={"shield": shield_id},
    )
    return shield_pb2.ShieldVerdict(shield_id=shield_id, failure=failure)
