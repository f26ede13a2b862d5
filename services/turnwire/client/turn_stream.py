"""The events of one turn, whole, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import Draining, NotFound, NotOwner, TurnwireError, Unavailable, from_rpc_error
from turnwire.fold import SequenceGapError, TurnFold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType

    from turnwire.agent.v1 import event_pb2
    from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub

Tool = "Callable[..., Any]"
_RESUMED = (Unavailable, Draining, NotOwner)


class TurnStream:
    """Iterates over the events of a turn, and folds them.

    A stream that is cut is resumed after the last number that was seen; events come once each. Leaving early ends the
    stream, never the turn.
    """

    def __init__(
        self,
        stub: AgentServiceStub,
        *,
        request: agent_service_pb2.RunTurnRequest | None = None,
        turn_id: str = "",
        after_sequence: int = 0,
        follow_pauses: bool = False,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        heartbeats: bool = False,
        resume_timeout: float = 60.0,
    ) -> None:
        """Runs `request`, or watches `turn_id`. `tools` are the caller's functions, called with their arguments.

        `resume_timeout` is how long, in seconds, a cut stream is tried to be resumed.
        """
        self._stub = stub
        self._request = request
        self._turn_id = turn_id or (request.turn_id if request is not None else "")
        self._follow_pauses = follow_pauses
        self._tools = dict(tools or {})
        self._heartbeats = heartbeats
        self._resume_timeout = resume_timeout
        self._started = request is None
        self._position = after_sequence
        self._call: Any = None
        self._closed = False
        self.fold = TurnFold(self._turn_id)
        """The fold; whole only when the stream was read from its first event."""
        self.reconnects = 0
        """How often the stream was resumed."""
        self.request_id = ""
        """The id under which the service logged the last stream."""

    async def __aenter__(self) -> TurnStream:
        """Gives the stream itself; it is closed on exit."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the stream; the turn goes on."""
        self.close()

    def close(self) -> None:
        """Ends the stream, and the iteration of whoever reads it; the turn goes on."""
        self._closed = True
        self._end_call()

    def _end_call(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    @property
    def turn_id(self) -> str:
        """The id of the turn."""
        return self._turn_id

    @property
    def turn(self) -> turn_pb2.Turn:
        """The turn as far as its events have come."""
        return self.fold.turn

    @property
    def text(self) -> str:
        """The answer so far: the final one, or the text of the last inference."""
        turn = self.fold.turn
        if turn.HasField("output"):
            return "".join(part.text for part in turn.output.parts)
        texts = [step.inference.text for step in turn.steps if step.HasField("inference")]
        return texts[-1] if texts else ""

    async def result(self) -> turn_pb2.Turn:
        """Reads to the end and returns the turn."""
        async for _ in self:
            pass
        return self.turn

    async def __aiter__(self) -> AsyncIterator[event_pb2.StepEvent]:
        """Yields the events to the end of the turn, or to a pause that nobody here answers.

        Raises:
            TurnwireError: the turn could not be run, or its stream not be resumed in time.
        """
        deadline: float | None = None
        delay = 0.05
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                async for event in self._once():
                    deadline, delay = None, 0.05
                    yield event
                if self._ended():
                    if not await self._answered():
                        return
                    continue
                cut: TurnwireError = TurnwireError.cut("agent")
            except _RESUMED as error:
                cut = error
            except SequenceGapError:
                # What was lost comes again: the stream is read after the last number that is folded.
                self._position = self.fold.last_sequence
                continue
            finally:
                self._end_call()
            if self._closed:
                return
            deadline = deadline if deadline is not None else loop.time() + self._resume_timeout
            if loop.time() > deadline:
                raise cut
            self.reconnects += 1
            await asyncio.sleep(delay * random.uniform(0.7, 1.3))  # noqa: S311 - jitter, no secret
            delay = min(delay * 2, 1.0)

    async def _once(self) -> AsyncIterator[event_pb2.StepEvent]:
        """Yields the events of one stream that are new."""
        if not self._started and self._request is not None:
            self._call = self._stub.RunTurn(self._request)
        else:
            request = agent_service_pb2.WatchTurnRequest(
                turn_id=self._turn_id, after_sequence=self._position, follow_pauses=self._follow_pauses
            )
            self._call = self._stub.WatchTurn(request)
        call = self._call
        try:
            async for event in call:
                self._started = True
                if event.WhichOneof("payload") == "heartbeat":
                    if self._heartbeats:
                        yield event
                    continue
                if event.sequence <= self._position:
                    continue
                if self.fold.last_sequence == self._position:
                    self.fold.apply(event)
                self._position = event.sequence
                self._turn_id = event.turn_id
                yield event
        except asyncio.CancelledError:
            # gRPC reports a call that `close` has cancelled as if its reader had been cancelled.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
        except grpc.RpcError as error:
            typed = from_rpc_error(error, service="agent")
            # A turn whose acceptance was not answered is run again under its id: it is accepted once.
            if isinstance(typed, NotFound) and self._request is not None and self._position == 0:
                self._started = False
            raise typed from error
        finally:
            call.cancel()

    def _ended(self) -> bool:
        turn = self.fold.turn
        if self.fold.finished or self.fold.awaits_input:
            return True
        # A stream that began in the middle is not folded; the server ended it well.
        return turn.last_sequence != self._position

    async def _answered(self) -> bool:
        """Answers a pause with the caller's functions; False when there is nothing to answer, or no function for it."""
        if not self.fold.awaits_input:
            return False
        requests = list(self.fold.turn.awaited_input.requests)
        if not requests or any(
            request.kind != turn_pb2.INPUT_KIND_TOOL_RESULT or request.call.name not in self._tools
            for request in requests
        ):
            return False
        results = await asyncio.gather(*(self._called(request.call) for request in requests))
        inputs = [turn_pb2.TurnInput(tool_result=result) for result in results]
        try:
            await self._stub.SubmitTurnInput(
                agent_service_pb2.SubmitTurnInputRequest(turn_id=self._turn_id, inputs=inputs), timeout=30
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="agent") from error
        return True

    async def _called(self, call: message_pb2.ToolCall) -> message_pb2.ToolResult:
        result = message_pb2.ToolResult(call_id=call.call_id, name=call.name)
        try:
            value = self._tools[call.name](**json.loads(call.arguments_json or "{}"))
            if inspect.isawaitable(value):
                value = await value
            result.content = value if isinstance(value, str) else json.dumps(value)
        except Exception as error:
            # The model reads what went wrong, as it would of any tool.
            result.failure.reason = error_pb2.ERROR_REASON_TOOL_FAILED
            result.failure.message = f"{type(error).__name__}: {error}"
            result.failure.metadata["tool"] = call.name
        return result
