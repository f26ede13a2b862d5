"""Calls of tools are stopped at the executor: within a moment as far as it answers, and otherwise once it does."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import grpc
import structlog

from turnwire.agent.turn.retrying import passes
from turnwire.agent.v1 import turn_pb2
from turnwire.errors import DeadlineExceeded, TurnwireError, from_rpc_error
from turnwire.runtime.failpoints import Boundary
from turnwire.tool_executor.v1 import execution_pb2

if TYPE_CHECKING:
    from turnwire.tool_executor.v1 import tool_executor_service_pb2
    from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceStub

    Outcome = turn_pb2.CancelledCall.Outcome.ValueType

_log = structlog.get_logger(__name__)

_ASKED = Boundary("agent.tool_stopped")
_CALL_SECONDS = 5.0
_GIVES_UP_SECONDS = 600.0
"""So long an executor is asked that does not answer: what runs there has a limit of its own."""
_LONGEST_PAUSE = 2.0
_OUTCOMES = {
    execution_pb2.EXECUTION_STATE_CANCELLED: turn_pb2.CancelledCall.OUTCOME_STOPPED,
    execution_pb2.EXECUTION_STATE_OUTCOME_UNKNOWN: turn_pb2.CancelledCall.OUTCOME_UNKNOWN,
}


class Stopping:
    """Stops calls of all turns of this process."""

    def __init__(self, executor: ToolExecutorServiceStub) -> None:
        """Nothing is to be stopped yet."""
        self._executor = executor
        self._asking: set[asyncio.Task[Outcome]] = set()

    async def stop(self, request: tool_executor_service_pb2.CancelExecutionRequest, seconds: float) -> Outcome:
        """Has a call stopped; returns what became of it, as far as that is known in so many seconds.

        An executor that does not answer in time is asked on: a turn has ended without its tool then, and the tool is
        to end too.
        """
        asking = asyncio.create_task(self._asked(request), name=f"stop {request.call_id}")
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        await asyncio.wait({asking}, timeout=seconds)
        if asking.done():
            return asking.result()
        _log.warning("call_not_stopped_yet", turn_id=request.turn_id, call_id=request.call_id)
        return turn_pb2.CancelledCall.OUTCOME_UNKNOWN

    async def close(self) -> None:
        """Asks no further."""
        left = list(self._asking)
        for asking in left:
            asking.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _asked(self, request: tool_executor_service_pb2.CancelExecutionRequest) -> Outcome:
        gives_up = asyncio.get_running_loop().time() + _GIVES_UP_SECONDS
        pause = 0.1
        while True:
            try:
                async with _ASKED:
                    response = await self._executor.CancelExecution(request, timeout=_CALL_SECONDS)
            except grpc.RpcError as raised:
                error = from_rpc_error(raised, service="tool_executor")
            except TurnwireError as raised:
                error = raised
            else:
                return _OUTCOMES.get(response.execution.state, turn_pb2.CancelledCall.OUTCOME_FENCED)
            late = asyncio.get_running_loop().time() > gives_up
            if late or not (passes(error) or isinstance(error, DeadlineExceeded)):
                facts = {"turn_id": request.turn_id, "call_id": request.call_id}
                _log.warning("call_not_stopped", error=error.message, **facts)
                return turn_pb2.CancelledCall.OUTCOME_UNKNOWN
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - jitter, no secret
            pause = min(pause * 2, _LONGEST_PAUSE)
