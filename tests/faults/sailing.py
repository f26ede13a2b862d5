"""The turn, run beside a fault, and what it must be in the end, whatever the fault was."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tests.faults import voyage
from tests.mesh.asking import check_log, folded, until
from tests.tool_executor.calling import calling
from turnwire.agent.v1 import agent_service_pb2, step_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import TurnwireError
from turnwire.fold import TERMINAL_STATUSES
from turnwire.ids import new_id

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from tests.faults.world import World
    from turnwire.client import Client
    from turnwire.client.turn_stream import TurnStream

T = TypeVar("T")
_PATIENCE = 30.0
"""A stream that cannot be resumed for so many seconds is a defect."""
_ENDS = ("step_completed", "step_failed")
_CHOICES = (
    turn_pb2.OutcomeDecision.CHOICE_RETRY,
    turn_pb2.OutcomeDecision.CHOICE_SKIP,
    turn_pb2.OutcomeDecision.CHOICE_PROVIDE,
)


@dataclass
class Voyage:
    """One run of the turn, with two readers: who began it, and one at another replica."""

    world: World
    session_id: str
    cancelled: bool = False
    """Somebody at another replica cancels it, while a picture is made that takes for ever."""
    turn_id: str = field(default_factory=lambda: new_id("turn"))
    settled_at: float = 0.0
    """When the turn had ended, or asked for a decision, by the clock of the loop."""
    recoveries: int = 0
    decided: int = 0
    """How often a person had to decide."""
    _stream: TurnStream | None = None
    _watcher: asyncio.Task[turn_pb2.Turn] | None = None
    _next: asyncio.Task[turn_pb2.Turn] | None = None
    _cancelling: asyncio.Task[None] | None = None

    async def sail(self) -> turn_pb2.Turn:
        """Runs the turn until it has ended, or asks for a decision; returns it as who began it has seen it."""
        self.world.images.script = ["hang"] if self.cancelled else []
        client = self.world.clients[0]
        said = user_message(voyage.QUESTION)
        said.attachments.append(voyage.ORDERS)
        self._stream = client.run_turn(
            self.session_id,
            [said],
            turn_id=self.turn_id,
            tools={voyage.FUNCTION: _ask_the_captain},
            resume_timeout=_PATIENCE,
        )
        async for event in self._stream:
            if self._watcher is None:
                self._watcher = asyncio.create_task(self._watch(), name=f"watcher of {self.turn_id}")
                self._next = asyncio.create_task(self._sail_next(), name=f"turn after {self.turn_id}")
            started = event.WhichOneof("payload") == "tool_call_started"
            if self.cancelled and started and self._cancelling is None:
                self._cancelling = asyncio.create_task(self._cancel(), name=f"cancelling of {self.turn_id}")
        if self._cancelling is not None:
            await self._cancelling
        self.settled_at = asyncio.get_running_loop().time()
        if self._stream.turn.status in TERMINAL_STATUSES and self._next is not None:
            await asyncio.wait([self._next])
        return self._stream.turn

    async def arrive(self, chance: random.Random) -> turn_pb2.Turn:
        """Decides about what is in doubt, until the turn has ended; returns it as the mesh has it then."""
        client = self.world.clients[0]
        while (turn := await self._read(client)).status not in TERMINAL_STATUSES:
            for request in turn.awaited_input.requests:
                assert turn_pb2.INPUT_KIND_OUTCOME_DECISION == request.kind, turn
                choice = chance.choice(_CHOICES)
                provided = message_pb2.ToolResult(content="Somebody looked: it was done.")
                result = provided if choice == turn_pb2.OutcomeDecision.CHOICE_PROVIDE else None
                self.decided += 1
                decide = partial(client.resolve_turn_call, self.turn_id, request.call.call_id, choice, result=result)
                await again(decide)
            stream = client.watch_turn(self.turn_id, tools={voyage.FUNCTION: _ask_the_captain})
            await stream.result()
        return turn

    async def check(self) -> None:
        """Asserts all that is promised of a turn that has ended."""
        turn, *others = [await self._read(client) for client in self.world.clients]
        for each in others:
            _check_same(turn, each, "at another replica")
        assert self._ended_well(turn), turn
        events = [event async for event in self.world.clients[1].watch_turn(self.turn_id)]
        check_log(events)
        _check_same(turn, folded(events), "read anew from another replica")
        assert self._watcher is not None
        _check_same(turn, await self._watcher, "watched at another replica")
        assert self._stream is not None
        if self._stream.turn.status in TERMINAL_STATUSES:
            _check_same(turn, self._stream.turn, "seen by who began it")
        ends = Counter(event.step_id for event in events if event.WhichOneof("payload") in _ENDS)
        assert not ends or max(ends.values()) == 1, turn
        if not self.cancelled:
            assert {step.step_id for step in turn.steps} == set(ends), turn
        # Shields of a step that was cut end with it, and run again with its next attempt.
        assert all(step.type == step_pb2.STEP_TYPE_SHIELD_CALL for step in turn.steps if step.HasField("failure")), turn
        self.recoveries = turn.recoveries
        await self._check_effects(turn)
        assert self._next is not None
        after = await self._next
        assert (turn_pb2.TURN_STATUS_COMPLETED, voyage.HOME) == (after.status, _text(after)), after
        assert turn.ordinal + 1 == after.ordinal
        assert after == await self._read(self.world.clients[1], after.turn_id)

    async def close(self) -> None:
        """Ends the readers."""
        if self._stream is not None:
            self._stream.close()
        for task in (self._watcher, self._next, self._cancelling):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, TurnwireError):
                    await task

    def _ended_well(self, turn: turn_pb2.Turn) -> bool:
        """True for a turn that ended as it does without a fault."""
        if self.cancelled:
            return turn.status == turn_pb2.TURN_STATUS_CANCELLED
        return (turn_pb2.TURN_STATUS_COMPLETED, voyage.ANSWER) == (turn.status, _text(turn))

    async def _read(self, client: Client, turn_id: str = "") -> turn_pb2.Turn:
        return await again(lambda: client.get_turn(turn_id or self.turn_id))

    async def _watch(self) -> turn_pb2.Turn:
        return await self.world.clients[1].watch_turn(self.turn_id, follow_pauses=True).result()

    async def _sail_next(self) -> turn_pb2.Turn:
        stream = self.world.clients[0].run_turn(
            self.session_id,
            voyage.AFTERWARDS,
            busy_policy=agent_service_pb2.BUSY_POLICY_QUEUE,
            turn_id=f"{self.turn_id}_next",
        )
        return await stream.result()

    async def _cancel(self) -> None:
        await again(lambda: self.world.clients[1].cancel_turn(self.turn_id))

    async def _check_effects(self, turn: turn_pb2.Turn) -> None:
        """Each effect at most once a call; exactly once when the call is said to have succeeded."""
        made = Counter(self.world.images.effects)
        noted = Counter(await self._notes())
        for name, effects in (("photogen", made), ("code_interpreter", noted)):
            calls = [each for each in _executions(turn) if each.call.name == name]
            assert calls or self.cancelled, turn
            for each in calls:
                count = effects[each.call.call_id]
                doubtful = each.result.failure.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN
                provided = "Somebody looked" in each.result.content
                may_lack = doubtful or provided or self.cancelled
                assert count in ({0, 1} if may_lack else {1}), f"{count} effects of {each}"
        assert set(made.values()) <= {1}
        assert set(noted.values()) <= {1}

    async def _notes(self) -> list[str]:
        """Returns the ids of the calls whose code has run, from the session's workspace."""
        found: list[str] = []
        loop = asyncio.get_running_loop()
        gives_up = loop.time() + _PATIENCE

        async def read() -> bool:
            async with calling(self.world.meshes["tool_executor"]) as executor:
                ran = await executor.run(
                    "code_interpreter",
                    {"code": voyage.READING},
                    new_id("call"),
                    turn_id=new_id("turn"),
                    session_id=self.session_id,
                )
            if ran.result.HasField("failure"):
                assert loop.time() < gives_up, ran.result
                return False
            found.extend(line for line in ran.result.content.split("\n") if line)
            return True

        await until(read)
        return found


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """Returns what a call answers that is worth repeating while a service is away."""
    answers: list[T] = []

    async def answered() -> bool:
        answers.append(await call())
        return True

    await until(answered)
    return answers[-1]


async def _ask_the_captain(question: str) -> str:
    assert question
    return voyage.APPROVED


def _text(turn: turn_pb2.Turn) -> str:
    return "".join(part.text for part in turn.output.parts)


def _check_same(turn: turn_pb2.Turn, other: turn_pb2.Turn, what: str) -> None:
    if turn != other:
        lines = difflib.unified_diff(str(turn).splitlines(), str(other).splitlines(), "GetTurn", what, lineterm="")
        raise AssertionError("\n".join(lines))


def _executions(turn: turn_pb2.Turn) -> list[step_pb2.ToolExecution]:
    return [execution for step in turn.steps for execution in step.tool_execution.executions]
