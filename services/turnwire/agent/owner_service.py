"""The RPCs by which the replicas of the agent service work together on a turn."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from turnwire.agent import validation
from turnwire.agent.log.cursor import Cursor
from turnwire.agent.log.turn_log import LogReplaced
from turnwire.agent.v1 import turn_owner_service_pb2 as messages
from turnwire.agent.v1.turn_owner_service_pb2_grpc import TurnOwnerServiceServicer
from turnwire.errors import NotOwner
from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.runtime.validation import Violations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.agent.live.control import TurnControl
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.v1 import event_pb2

    Context = grpc.aio.ServicerContext[Any, Any]

_HEARTBEAT_SECONDS = 15.0
declare_methods(messages.DESCRIPTOR.services_by_name["TurnOwnerService"], "FollowTurn", "DeliverInbox")


class TurnOwnerServicer(TurnOwnerServiceServicer):
    """Answers for the turns that this process runs; it never asks another one."""

    def __init__(self, live: LiveTurns, control: TurnControl) -> None:
        """Shows the live turns; what lies in their inboxes goes through `control`."""
        self._live = live
        self._control = control

    async def FollowTurn(
        self, request: messages.FollowTurnRequest, context: Context
    ) -> AsyncIterator[event_pb2.StepEvent]:
        """Streams the events of a turn that this process runs."""
        validation.check_position(request)
        async with self._live.opened(current().tenant, request.turn_id) as live:
            if live.task is None:
                raise NotOwner(request.turn_id)
            cursor = Cursor(live.log, request.after_sequence, follow_pauses=False, heartbeat_seconds=_HEARTBEAT_SECONDS)
            try:
                async with self._live.watched(live), aclosing(cursor.events()) as events:
                    async for event in events:
                        yield event
            except LogReplaced:
                raise NotOwner(request.turn_id) from None

    async def DeliverInbox(
        self, request: messages.DeliverInboxRequest, context: Context
    ) -> AsyncIterator[messages.DeliverInboxResponse]:
        """Takes in what lies in the inbox of a turn that this process runs."""
        violations = Violations()
        validation.check_id(violations, "turn_id", request.turn_id)
        violations.raise_if_any()
        tenant = current().tenant
        async with self._live.opened(tenant, request.turn_id) as live:
            if live.task is None or not self._live.lease.good:
                raise NotOwner(request.turn_id)
            yield messages.DeliverInboxResponse(state=messages.DeliverInboxResponse.STATE_HEARD)
            await self._control.take_inbox(tenant, request.turn_id)
            yield messages.DeliverInboxResponse(state=messages.DeliverInboxResponse.STATE_APPLIED)
