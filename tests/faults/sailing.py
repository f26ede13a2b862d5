"""The turn, run beside a fault, and what it must be in the end, whatever the fault was."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults import voyage
from tests.mesh.asking import check_log, folded, until
from tests.tool_executor.calling import calling
from turnwire.agent.v1 import step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import TurnwireError
from turnwire.fold import TERMINAL_STATUSES
from turnwire.ids import new_id

if TYPE_CHECKING:
    import random

    from tests.faults.world import World
    from turnwire.client import Client
    from turnwire.client.turn_stream import TurnStream

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
    turn_id: str = field(default_factory=lambda: new_id("turn"))
    settled_at: float = 0.0
    """When the turn had ended, or asked for a decision, by the clock of the loop."""
    recoveries: int = 0
    decided: int = 0
    """How often a person had to decide."""
    _stream: TurnStream | None = None
    _watcher: asyncio.Task[turn_pb2.Turn] | None = None

    async def sail(self) -> turn_pb2.Turn:
        """Runs the turn until it has ended, or asks for a decision; returns it as who began it has seen it."""
        self._stream = self.world.clients[0].run_turn(
            self.session_id,
            voyage.QUESTION,
            turn_id=self.turn_id,
            tools={voyage.FUNCTION: _ask_the_captain},
            resume_timeout=_PATIENCE,
        )
        async for _ in self._stream:
            if self._watcher is None:
                self._watcher = asyncio.create_task(self._watch(), name=f"watcher of {self.turn_id}")
        self.settled_at = asyncio.get_running_loop().time()
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
                await client.resolve_turn_call(self.turn_id, request.call.call_id, choice, result=result)
            stream = client.watch_turn(self.turn_id, tools={voyage.FUNCTION: _ask_the_captain})
            await stream.result()
        return turn

    async def check(self) -> None:
        """Asserts all that is promised of a turn that has ended."""
        turn, *others = [await self._read(client) for client in self.world.clients]
        assert all(turn == each for each in others)
        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status, turn
        assert voyage.ANSWER == "".join(part.text for part in turn.output.parts), turn
        events = [event async for event in self.world.clients[1].watch_turn(self.turn_id)]
        check_log(events)
        assert turn == folded(events)
        assert self._watcher is not None
        assert turn == await self._watcher
        ends = Counter(event.step_id for event in events if event.WhichOneof("payload") in _ENDS)
        assert dict.fromkeys((step.step_id for step in turn.steps), 1) == ends, turn
        # Shields of a step that was cut end with it, and run again with its next attempt.
        assert all(step.type == step_pb2.STEP_TYPE_SHIELD_CALL for step in turn.steps if step.HasField("failure")), turn
        self.recoveries = turn.recoveries
        await self._check_effects(turn)

    async def close(self) -> None:
        """Ends the readers."""
        if self._stream is not None:
            self._stream.close()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError, TurnwireError):
                await self._watcher

    async def _read(self, client: Client) -> turn_pb2.Turn:
        found: list[turn_pb2.Turn] = []

        async def read() -> bool:
            found.append(await client.get_turn(self.turn_id))
            return True

        await until(read)
        return found[-1]

    async def _watch(self) -> turn_pb2.Turn:
        return await self.world.clients[1].watch_turn(self.turn_id, follow_pauses=True).result()

    async def _check_effects(self, turn: turn_pb2.Turn) -> None:
        """Each effect at most once a call; exactly once when the call is said to have succeeded."""
        made = Counter(self.world.images.effects)
        noted = Counter(await self._notes())
        for name, effects in (("photogen", made), ("code_interpreter", noted)):
            calls = [each for each in _executions(turn) if each.call.name == name]
            assert calls, turn
            for each in calls:
                count = effects[each.call.call_id]
                doubtful = each.result.failure.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN
                provided = "Somebody looked" in each.result.content
                assert count in ({0, 1} if doubtful or provided else {1}), f"{count} effects of {each}"
        assert {1} == set(made.values())
        assert {1} == set(noted.values())

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


async def _ask_the_captain(question: str) -> str:
    assert question
    return voyage.APPROVED


def _executions(turn: turn_pb2.Turn) -> list[step_pb2.ToolExecution]:
    return [execution for step in turn.steps for execution in step.tool_execution.executions]
