"""The events of one turn, whole, whatever happens to the connection."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.client.caller_tools import CallerTools
from turnwire.client.resumption import Patience, Silence, judged
from turnwire.errors import Cancelled, TurnFinished, TurnNotAwaitingInput, TurnwireError, Unavailable
from turnwire.fold import SequenceGapError, TurnFold
from turnwire.ids import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from turnwire.agent.v1 import event_pb2
    from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub

_SECONDS = 30.0


class TurnStream:
    """Iterates over the events of a turn, and folds them.

    A stream that is cut is resumed after the last number that was seen; events come once each. Leaving early ends the
    stream, never the turn. An iteration that was left can be taken up again by another; two at once are refused.
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
        stall_timeout: float | None = 60.0,
    ) -> None:
        """Runs `request`, or watches `turn_id`. `tools` are the caller's functions, called with their arguments.

        `resume_timeout` is how long, in seconds, a cut stream is tried to be resumed. A stream on which not even a
        heartbeat comes for `stall_timeout` seconds counts as cut.
        """
        self._stub = stub
        self._request = request
        self._turn_id = turn_id or (request.turn_id if request is not None else "")
        self._follow_pauses = follow_pauses
        self._tools = CallerTools(tools) if tools else None
        self._heartbeats = heartbeats
        self._resume_timeout = resume_timeout
        self._stall_timeout = stall_timeout
        self._started = request is None
        self._position = after_sequence
        self._call: Any = None
        self._reading = False
        self._reader: object = None
        self._left_pause = False
        self._refused_at = -1
        self._closing = asyncio.Event()
        self.fold = TurnFold(self._turn_id)
        """The fold; it stays empty when the stream is not read from the turn's first event."""
        self.reconnects = 0
        """How often the stream was resumed."""
        self.request_id = ""
        """The id under which the service logs the present stream."""

    async def __aenter__(self) -> TurnStream:
        """Gives the stream itself; it is closed on exit."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the stream; the turn goes on."""
        self.close()

    def close(self) -> None:
        """Ends the stream, and the iteration of whoever reads it; the turn goes on.

        Functions of the caller that run for the turn are cancelled.
        """
        self._closing.set()
        if self._call is not None:
            self._call.cancel()

    @property
    def turn_id(self) -> str:
        """The id of the turn."""
        return self._turn_id

    @property
    def last_sequence(self) -> int:
        """The number of the last event that was seen: where `watch_turn` goes on."""
        return self._position

    @property
    def whole(self) -> bool:
        """True when the stream is read from the turn's first event, so that `fold` has all of it."""
        return self.fold.last_sequence == self._position

    @property
    def turn(self) -> turn_pb2.Turn:
        """The turn as far as its events have come. Only of a `whole` stream."""
        return self.fold.turn

    @property
    def text(self) -> str:
        """The answer so far: the final one, or the text of the last inference. Only of a `whole` stream."""
        turn = self.fold.turn
        if turn.HasField("output"):
            return "".join(part.text for part in turn.output.parts)
        texts = [step.inference.text for step in turn.steps if step.HasField("inference")]
        return texts[-1] if texts else ""

    async def result(self) -> turn_pb2.Turn:
        """Reads to the end and returns the turn. A turn that failed is returned too: look at its `status`."""
        async for _ in self:
            pass
        return self.turn if self.whole else await self._fetched()

    async def __aiter__(self) -> AsyncGenerator[event_pb2.StepEvent, None]:
        """Yields the events to the end of the turn, or to a pause that nobody here answers.

        Raises:
            TurnwireError: the turn could not be run, or its stream not be resumed in time.
        """
        reader = object()
        self._take_up(reader)
        patience = Patience(self._resume_timeout)
        try:
            while not self._closing.is_set():
                follow = self._follow_pauses and (self._tools is None or self._left_pause)
                try:
                    async with aclosing(self._events(follow=follow)) as events:
                        async for event in events:
                            patience.renew()
                            if not self._heartbeats and event.WhichOneof("payload") == "heartbeat":
                                continue
                            self._reading = False
                            yield event
                            self._take_up(reader)
                            if follow and self._is_ours(event):
                                break
                        else:
                            if not await self._goes_on(follow=follow):
                                return
                except _Cut as cut:
                    await patience.wait(cut.error, self._pause)
                    self.reconnects += 1
        finally:
            if self._reader is reader:
                self._reader = None
                self._reading = False

    def _take_up(self, reader: object) -> None:
        """Lets `reader` read on. It may take the place of one that was left between two events."""
        if self._reading:
            raise RuntimeError(f"the stream of turn {self._turn_id} is read by another iteration: watch the turn again")
        self._reader = reader
        self._reading = True

    async def _events(self, *, follow: bool) -> AsyncGenerator[event_pb2.StepEvent, None]:
        """Yields the events of one stream that are new, and its heartbeats.

        Raises:
            _Cut: it did not end as the service ends it.
        """
        call = self._call = self._opened(follow=follow)
        silence = Silence(call, self._stall_timeout)
        cancels = _cancellations()
        try:
            silence.begins()
            async for event in call:
                silence.ends()
                if self._taken(event):
                    yield event
                cancels = _cancellations()
                silence.begins()
        except asyncio.CancelledError:
            # gRPC reports a call that was cancelled here as if its reader had been cancelled.
            if _cancellations() > cancels:
                raise
            if self._closing.is_set():
                return
            if not silence.broke:
                raise _client_closed(self._turn_id) from None
            raise _Cut(_stalled(self._stall_timeout)) from None
        except grpc.RpcError as error:
            typed, passing = judged(error)
            raise (_Cut(typed) if passing else typed) from error
        except SequenceGapError as gap:
            # What was lost comes again: the stream is read after the last number that was taken.
            raise _Cut(Unavailable("agent", detail=f"its stream had a gap: {gap}")) from gap
        finally:
            silence.close()
            call.cancel()
            if self._call is call:
                self._call = None

    def _opened(self, *, follow: bool) -> Any:
        self.request_id = new_id("req")
        metadata = (("turnwire-request-id", self.request_id),)
        try:
            if not self._started and self._request is not None:
                self._request.follow_pauses = follow
                return self._stub.RunTurn(self._request, metadata=metadata)
            request = agent_service_pb2.WatchTurnRequest(
                turn_id=self._turn_id, after_sequence=self._position, follow_pauses=follow
            )
            return self._stub.WatchTurn(request, metadata=metadata)
        except grpc.aio.UsageError as error:
            raise _client_closed(self._turn_id) from error

    def _taken(self, event: event_pb2.StepEvent) -> bool:
        """Takes an event in; False for one that was seen before."""
        self._started = True
        if event.WhichOneof("payload") == "heartbeat":
            return True
        if event.sequence <= self._position:
            return False
        if self.whole:
            self.fold.apply(event)
        elif event.first_sequence > self._position + 1:
            raise SequenceGapError(self._position + 1, event.first_sequence)
        self._position = event.sequence
        return True

    def _is_ours(self, event: event_pb2.StepEvent) -> bool:
        """True for a pause that the functions answer.

        Whether the pause is the last event only a stream tells that does not follow pauses.
        """
        if event.WhichOneof("payload") != "turn_awaiting_input" or self._tools is None:
            return False
        self._left_pause = not self._tools.answer(event.turn_awaiting_input.awaited_input.requests)
        return not self._left_pause

    async def _goes_on(self, *, follow: bool) -> bool:
        """What follows when a stream has ended well: True for another one, False for the end of the iteration."""
        if self._closing.is_set() or (self.whole and self.fold.finished):
            return False
        if self.whole and not self.fold.awaits_input:
            # A proxy may end a stream well in the middle of a turn; the service does not.
            raise _Cut(TurnwireError.cut("agent"))
        if self._tools is None:
            return False
        requests = list((self.turn if self.whole else await self._fetched()).awaited_input.requests)
        if self._tools.answer(requests):
            await self._answer(self._tools, requests)
            return True
        self._left_pause = bool(requests)
        return self._left_pause and self._follow_pauses and not follow

    async def _answer(self, tools: CallerTools, requests: Sequence[turn_pb2.InputRequest]) -> None:
        """Runs the functions and submits what they return, unless the stream is closed meanwhile."""
        submissions = await self._unless_closed(tools.answers(self._turn_id, requests))
        for request in submissions or ():
            try:
                await self._unless_closed(self._repeated(self._stub.SubmitTurnInput, request))
            except (TurnFinished, TurnNotAwaitingInput):
                # Somebody else has answered, cancelled, or waited too long: the next events tell.
                if self._refused_at == self._position:
                    raise
                self._refused_at = self._position
                return

    async def _fetched(self) -> turn_pb2.Turn:
        request = agent_service_pb2.GetTurnRequest(turn_id=self._turn_id)
        return (await self._repeated(self._stub.GetTurn, request)).turn

    async def _repeated(self, method: Callable[..., Awaitable[Any]], request: object) -> Any:
        """Returns the answer of a method that may be repeated, also when the service is away for a while."""
        patience = Patience(self._resume_timeout)
        while True:
            try:
                return await method(request, timeout=_SECONDS)
            except grpc.RpcError as error:
                typed, passing = judged(error)
                if not passing:
                    raise typed from error
                await patience.wait(typed, self._pause)

    async def _pause(self, seconds: float) -> None:
        """Waits, but not longer than the stream is open."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    async def _unless_closed(self, work: Awaitable[Any]) -> Any:
        """Returns what `work` gives; None when the stream was closed meanwhile, and `work` cancelled."""
        working = asyncio.ensure_future(work)
        closed = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({working, closed}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            closed.cancel()
            await asyncio.gather(working, closed, return_exceptions=True)


class _Cut(Exception):
    """A stream ended in the middle of its turn."""

    def __init__(self, error: TurnwireError) -> None:
        super().__init__(error.message)
        self.error = error


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _client_closed(turn_id: str) -> Cancelled:
    return Cancelled(f"The client was closed while turn {turn_id} was read. The turn goes on: watch it with another.")


def _stalled(seconds: float | None) -> Unavailable:
    return Unavailable(
        "agent",
        detail=f"its stream was silent for {seconds:g} s, without a heartbeat (`stall_timeout` has to be longer than "
        "`agent.heartbeat_seconds` of the service)",
    )
