"""The other replicas of the agent service, called at the addresses of their leases."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from turnwire.agent.v1 import turn_owner_service_pb2 as messages
from turnwire.agent.v1.turn_owner_service_pb2_grpc import TurnOwnerServiceStub
from turnwire.errors import from_rpc_error
from turnwire.runtime.channels import upstream
from turnwire.runtime.failpoints import Boundary
from turnwire.runtime.identity import acting_as

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from turnwire.runtime.directory import Directory

_log = structlog.get_logger(__name__)

SILENCE_SECONDS = 0.5
"""An owner that is not heard of for so long is passed over by who cancels."""
_APPLIED_SECONDS = 5.0
_DELIVERY = Boundary("agent.inbox_delivered")


class Peers:
    """Calls other replicas."""

    def __init__(self, directory: Directory) -> None:
        """Keeps a channel to each replica that lives, at most for as long as `directory` is open."""
        self._directory = directory
        self._stubs: dict[str, TurnOwnerServiceStub] = {}
        self._calls: Counter[str] = Counter()

    @asynccontextmanager
    async def reached(self, address: str) -> AsyncGenerator[TurnOwnerServiceStub]:
        """Gives the stub of a replica; its channel is open for at least the time of the context."""
        stub = self._stubs.get(address)
        if stub is None:
            stub = self._stubs[address] = TurnOwnerServiceStub(self._directory.peer_channel("agent", address))
        self._calls[address] += 1
        try:
            yield stub
        finally:
            self._calls[address] -= 1

    async def keep(self, living: Collection[str]) -> None:
        """Closes the channels to all other addresses than these, unless they are in use."""
        for address in [each for each in self._stubs if each not in living]:
            if not self._calls[address]:  # now: closing the one before took its time
                del self._stubs[address], self._calls[address]
                await self._directory.close_peer(address)

    async def deliver(self, tenant: str, address: str, turn_id: str) -> bool:
        """Has the owner of a turn look into its inbox; False when it is not heard of, or owns the turn no longer."""
        request = messages.DeliverInboxRequest(turn_id=turn_id)
        async with self.reached(address) as stub:
            with acting_as(tenant):
                call = stub.DeliverInbox(request, timeout=SILENCE_SECONDS + _APPLIED_SECONDS)
            async with _DELIVERY:
                return await self._applied(call, turn_id, address)

    async def _applied(self, call: Any, turn_id: str, address: str) -> bool:
        async with upstream(call):
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    answer = await call.read()
                while answer is not grpc.aio.EOF:
                    assert isinstance(answer, messages.DeliverInboxResponse)
                    if answer.state == messages.DeliverInboxResponse.STATE_APPLIED:
                        return True
                    answer = await call.read()
            except TimeoutError:
                _log.warning("owner_silent", turn_id=turn_id, address=address)
            except grpc.RpcError as error:
                told = from_rpc_error(error, service="agent").message
                _log.info("owner_not_reached", turn_id=turn_id, address=address, error=told)
        return False
