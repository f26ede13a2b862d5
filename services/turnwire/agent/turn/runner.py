"""The driver of one turn: asks what comes next, commits it, does it, until the turn ends or pauses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

import structlog

from turnwire.agent.log.writer import draft
from turnwire.agent.turn import budget
from turnwire.agent.turn.actions import Pause, Record, RunInference, RunRetrieval, RunShields, RunTools, Stop
from turnwire.agent.turn.calls import in_doubt
from turnwire.agent.turn.next import failed, next_action
from turnwire.agent.turn.steps import open_steps
from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.errors import Internal, NotOwner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from turnwire.agent.log.turn_log import TurnLog
    from turnwire.agent.log.writer import TurnWriter
    from turnwire.agent.turn.actions import Action, Work
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.agent.turn.workers import Workers
    from turnwire.common.v1 import error_pb2, message_pb2
    from turnwire.fold import TurnFold

_log = structlog.get_logger(__name__)

_STOP_SECONDS = 0.75
"""So long the end of a turn waits to hear what became of its calls: who cancels has an answer within a second."""
_STOP_AFTER_TAKEOVER_SECONDS = 0.35
"""The same where half of that second went by until the last owner was passed over."""


def plan(
    preview: TurnFold, config: TurnConfig, first: Sequence[event_pb2.StepEvent]
) -> tuple[list[event_pb2.StepEvent], Action]:
    """Returns all events that follow from `first` without anything outside the log, and what is to be done then.

    They go to the store as one commit: the end of a step with the start of the next, the acceptance of a turn with
    its first step. `preview` is the state before `first`; it is changed.
    """
    events: list[event_pb2.StepEvent] = []
    pending = list(first)
    while True:
        for event in pending:
            numbered = event_pb2.StepEvent()
            numbered.CopyFrom(event)
            if not numbered.sequence:
                numbered.first_sequence = numbered.sequence = preview.last_sequence + 1
            preview.apply(numbered)
            events.append(event)
        action = next_action(preview.turn, config)
        if not isinstance(action, Record):
            return events, action
        pending = list(action.events)


class TurnRunner:
    """Runs one turn in this process."""

    def __init__(
        self,
        log: TurnLog,
        writer: TurnWriter,
        config: TurnConfig,
        workers: Workers,
        history: Callable[[turn_pb2.Turn], Awaitable[list[message_pb2.Message]]],
    ) -> None:
        """Appends through `writer`; reads earlier turns through `history`."""
        self._log = log
        self._writer = writer
        self._config = config
        self._workers = workers
        self._history = history
        self._history_messages: list[message_pb2.Message] | None = None
        self._cancel_reason: str | None = None
        self._outcomes: dict[str, turn_pb2.CancelledCall.Outcome.ValueType] = {}
        self._work: asyncio.Task[list[event_pb2.StepEvent]] | None = None
        self._releasing = False
        self._stopped = False

    async def run(self, first: Sequence[event_pb2.StepEvent] = ()) -> None:
        """Commits `first` and what follows from it, and goes on until the turn ends, pauses or is let go of.

        Raises:
            NotOwner: another process has taken the turn over; this one shows nothing further.
        """
        events = list(first)
        try:
            while True:
                action = await self._commit(events)
                if self._cancel_reason is not None and not isinstance(action, Stop):
                    if isinstance(action, RunTools) and not self._stopped:
                        # Taken over to be cancelled: what the last owner began is stopped, or fenced off.
                        await self._stop(action.step, _STOP_AFTER_TAKEOVER_SECONDS)
                    events = [self._cancelled()]
                    continue
                match action:
                    case Pause() | Stop():
                        return
                    case _ if self._releasing:
                        return
                    case Record():
                        raise AssertionError("plan leaves nothing to record")
                    case _:
                        events = await self._do(action)
        finally:
            await self._writer.close()

    def cancel(self, reason: str) -> None:
        """Ends the turn at once: what runs is cut, `turn_cancelled` follows."""
        self._cancel_reason = reason
        if self._work is not None:
            self._work.cancel()

    def release(self) -> None:
        """Lets go of the turn at its next boundary: another process goes on with it."""
        self._releasing = True

    async def _commit(self, events: list[event_pb2.StepEvent]) -> Action:
        events, action = plan(self._log.preview(), self._config, events)
        if events:
            await self._writer.commit(events)
        if isinstance(action, RunInference | RunShields | RunRetrieval | RunTools):
            # The plan's copy of the step goes; the log's own is the one that deltas change.
            step = self._log.fold.step(action.step.step_id)
            assert step is not None
            return replace(action, step=step)
        return action

    async def _do(self, action: Work) -> list[event_pb2.StepEvent]:
        """Does what is outside the log, for as long as the turn may, and returns the events that end it."""
        step = action.step
        self._work = asyncio.create_task(self._attempt(action), name=f"work {step.step_id}")
        try:
            async with asyncio.timeout(budget.remaining_seconds(self._log.fold.turn, self._config.config.limits)):
                return await asyncio.shield(self._work)
        except TimeoutError:
            await self._stop(step)
            return [self._failed(budget.active_time_exhausted(self._config.config.limits))]
        except asyncio.CancelledError:
            if self._cancel_reason is not None and not _cancelling():
                await self._stop(step)
                return []
            raise
        except Exception as error:
            if isinstance(error, NotOwner):
                raise
            _log.exception("turn_defect", turn_id=self._log.turn_id, step_id=step.step_id)
            return [self._failed(Internal(service="agent").to_failure())]
        finally:
            await self._end_work()

    async def _attempt(self, action: Work) -> list[event_pb2.StepEvent]:
        turn = self._log.fold.turn
        if self._delay:
            await asyncio.sleep(self._delay)
        await self._writer.lit()
        match action:
            case RunShields():
                return await self._workers.input_shields.run(turn, action.step)
            case RunTools():
                return await self._workers.tools.run(turn, action.step)
            case RunInference():
                return await self._workers.inference.run(turn, action.step, await self._earlier(turn))
            case RunRetrieval():
                return await self._workers.retrieval.run(turn, action.step, await self._earlier(turn))
            case _:
                assert_never(action)

    async def _earlier(self, turn: turn_pb2.Turn) -> list[message_pb2.Message]:
        if self._history_messages is None:
            self._history_messages = await self._writer.patiently(lambda: self._history(turn))
        return self._history_messages

    async def _stop(self, step: step_pb2.Step, seconds: float = _STOP_SECONDS) -> None:
        """Ends what runs, and has the calls of tools stopped where they run."""
        self._stopped = True
        await self._end_work()
        if step.type == step_pb2.STEP_TYPE_TOOL_EXECUTION:
            self._outcomes = await self._workers.tools.stop(self._log.fold.turn, step, seconds)

    async def _end_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            await self._writer.settle()
            self._work = None

    @property
    def _delay(self) -> float:
        """How long a restarted step waits."""
        last = self._log.after(self._log.last_sequence - 1, 1)
        if last and last[0].WhichOneof("payload") == "step_restarted":
            return last[0].step_restarted.delay.ToTimedelta().total_seconds()
        return 0.0

    def _failed(self, failure: error_pb2.Failure) -> event_pb2.StepEvent:
        return failed(self._log.fold.turn, failure)

    def _cancelled(self) -> event_pb2.StepEvent:
        return cancelled(self._log.fold.turn, self._cancel_reason or "", self._outcomes)


def cancelled(
    turn: turn_pb2.Turn, reason: str, outcomes: Mapping[str, turn_pb2.CancelledCall.Outcome.ValueType] | None = None
) -> event_pb2.StepEvent:
    """Returns the event that cancels a turn, with what became of its open calls.

    A model's call was stopped. A function of the caller may run on in the caller; its result is no longer taken. What
    became of the calls of tools stands in `outcomes`.
    """
    calls: list[turn_pb2.CancelledCall] = []
    for step in open_steps(turn):
        if step.type == step_pb2.STEP_TYPE_INFERENCE:
            calls.append(turn_pb2.CancelledCall(step_id=step.step_id, outcome=turn_pb2.CancelledCall.OUTCOME_STOPPED))
        calls.extend(
            turn_pb2.CancelledCall(
                call_id=execution.call.call_id,
                step_id=step.step_id,
                outcome=(outcomes or {}).get(execution.call.call_id, turn_pb2.CancelledCall.OUTCOME_FENCED),
            )
            for execution in step.tool_execution.executions
            if not execution.HasField("result")
        )
        calls.extend(
            turn_pb2.CancelledCall(
                call_id=execution.call.call_id, step_id=step.step_id, outcome=turn_pb2.CancelledCall.OUTCOME_UNKNOWN
            )
            for execution in in_doubt(step)
        )
    payload = event_pb2.TurnCancelled(reason=reason, calls=calls, usage=turn.usage)
    return draft(turn.turn_id, "turn_cancelled", payload)


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
