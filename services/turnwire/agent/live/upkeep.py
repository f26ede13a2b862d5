"""What the agent service does by itself: turns of an ended process go on, pauses expire, idle sessions are erased."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.log.writer import draft
from turnwire.agent.store import clock, requests, sessions, turns
from turnwire.agent.turn.next import failed
from turnwire.agent.turn.steps import is_nested, open_steps
from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.common.v1 import error_pb2
from turnwire.errors import NotFound, TurnwireError

if TYPE_CHECKING:
    from turnwire.agent.live.live_turn import LiveTurn
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.sessions import Sessions
    from turnwire.runtime.settings import AgentSettings
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)

MAX_RECOVERIES = 3
"""The third recovery without a new boundary in between fails a turn: it kills no more processes."""


class Upkeep:
    """Runs beside the service."""

    def __init__(self, store: Store, live: LiveTurns, sessions: Sessions, settings: AgentSettings) -> None:
        """Works on all tenants."""
        self._store = store
        self._live = live
        self._sessions = sessions
        self._settings = settings
        self._idle: frozenset[tuple[str, str]] = frozenset()
        """Turns that the last sweep found without a process, though they run."""

    async def recover(self) -> int:
        """Takes over every turn that ran when its owner ended; returns how many.

        On SQLite a service is one process, and it holds the lock: whoever is named as owner is gone.
        """
        found = await self._unfinished()
        for tenant, turn_id in found:
            await self._recover_one(tenant, turn_id)
        return len(found)

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        while True:
            try:
                await self.sweep()
            except TurnwireError as error:
                _log.warning("sweep_failed", error=error.message)
            await asyncio.sleep(self._settings.sweep_seconds)

    async def sweep(self) -> None:
        """Fails expired pauses, erases sessions that are not kept, forgets old request ids.

        A turn that a defect has left without a task goes on as after a restart. It is taken when two sweeps have found
        it so: one that was just accepted is about to be started.
        """
        idle_turns = frozenset(key for key in await self._unfinished() if not self._live.runs(*key))
        for tenant, turn_id in idle_turns & self._idle:
            await self._recover_one(tenant, turn_id)
        self._idle = idle_turns
        now = clock.now_microseconds()

        async def unit(tx: Transaction) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
            idle = await sessions.to_erase(tx, now - int(self._settings.erase_seconds * 1_000_000))
            return await turns.expired(tx, now), idle

        expired, idle = await self._store.read(unit)
        for tenant, turn_id in expired:
            await self._expire(tenant, turn_id)
        for tenant, session_id in idle:
            await self._sessions.erase(tenant, session_id)
        await self._store.write(requests.sweep)

    async def _unfinished(self) -> list[tuple[str, str]]:
        async def unit(tx: Transaction) -> list[tuple[str, str]]:
            return [(tenant, row.turn_id) for tenant, row in await turns.unfinished(tx)]

        return await self._store.read(unit)

    async def _recover_one(self, tenant: str, turn_id: str) -> None:
        try:
            async with self._live.opened(tenant, turn_id) as live, live.lock:
                if live.task is None and not live.log.fold.finished and not live.log.fold.awaits_input:
                    await self._recover(live)
        except TurnwireError:
            _log.exception("recovery_failed", turn_id=turn_id)

    async def _recover(self, live: LiveTurn) -> None:
        config = await self._live.config_of(live)
        await self._live.take_over(live)
        log = live.log
        recovered = draft(
            live.row.turn_id,
            "turn_recovered",
            event_pb2.TurnRecovered(epoch=live.row.epoch, instance_id=self._live.instance_id),
        )
        # Its range covers every number that the last owner may have shown and not stored.
        recovered.first_sequence = log.next_sequence
        recovered.sequence = max(log.ceiling + 1, log.next_sequence)
        first = [recovered]
        turn = log.fold.turn
        if self._recoveries_in_a_row(live) + 1 >= MAX_RECOVERIES:
            failure = error_pb2.Failure(
                reason=error_pb2.ERROR_REASON_RECOVERY_EXHAUSTED,
                message=f"The process that ran the turn ended {MAX_RECOVERIES} times at the same place. Look at the"
                " logs of the agent service before you run it again.",
                metadata={"turn_id": turn.turn_id, "recoveries": str(turn.recoveries + 1)},
            )
            first.append(failed(turn, failure))
        else:
            first.extend(event for step in open_steps(turn) for event in _restarted(turn.turn_id, step))
        _log.info("turn_recovered", turn_id=turn.turn_id, epoch=live.row.epoch)
        self._live.start(live, config, first)

    def _recoveries_in_a_row(self, live: LiveTurn) -> int:
        count = 0
        nested = {step.step_id for step in live.log.fold.turn.steps if is_nested(step)}
        for event in reversed(live.log.after(0, live.log.next_sequence)):
            match event.WhichOneof("payload"):
                case "turn_recovered":
                    count += 1
                case "step_restarted" | "step_delta" | "step_started":
                    continue
                case _:
                    # What shields within a cut step said does not bring the turn on: the step begins anew.
                    if event.step_id not in nested:
                        break
        return count

    async def _expire(self, tenant: str, turn_id: str) -> None:
        try:
            async with self._live.opened(tenant, turn_id) as live, live.lock:
                if not live.log.fold.awaits_input:
                    return
                config = await self._live.config_of(live)
                await self._live.take_over(live)
                failure = error_pb2.Failure(
                    reason=error_pb2.ERROR_REASON_INPUT_EXPIRED,
                    message="Nobody answered what the turn waited for in time. Run it again.",
                    metadata={"turn_id": turn_id},
                )
                self._live.start(live, config, [failed(live.log.fold.turn, failure)])
        except NotFound:
            return


def _restarted(turn_id: str, step: step_pb2.Step) -> list[event_pb2.StepEvent]:
    """What becomes of a step that was cut. Calls of tools are asked for again under their ids, so theirs goes on."""
    if step.type == step_pb2.STEP_TYPE_TOOL_EXECUTION:
        return []
    cause = error_pb2.Failure(
        reason=error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
        message="The process that ran the turn ended; another one goes on.",
        retryable=True,
        metadata={"service": "agent"},
    )
    if is_nested(step):
        return [draft(turn_id, "step_failed", event_pb2.StepFailed(failure=cause), step.step_id)]
    restarted = event_pb2.StepRestarted(attempt=step.attempt + 1, cause=cause)
    return [draft(turn_id, "step_restarted", restarted, step.step_id)]
