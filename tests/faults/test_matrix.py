"""Every kind of fault at every failpoint: the turn ends whole, or asks about the one call in doubt."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.faults.controller import Trigger
from tests.faults.kinds import choose, kinds_on
from tests.faults.plan import SEED, Outcome, note, note_places, note_reached, planned
from tests.faults.sailing import Voyage, again
from tests.faults.world import LEASE_SECONDS, World, running_world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [
    pytest.mark.mesh,
    pytest.mark.matrix,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
]

_PROMISED_SECONDS = LEASE_SECONDS + 5
_TURNS_A_SESSION = 10
_CANCELLED = 5
"""One turn in so many is cancelled."""
PLAN = planned()


class Worlds:
    """The world of a lane: one for many faults, and a new one after a defect."""

    def __init__(self) -> None:
        self.reached: dict[bool, dict[str, int]] = {}
        """How often an unfaulted turn reaches each failpoint; True: one that is cancelled."""
        self.unfaulted_seconds = 0.0
        """How long an unfaulted turn takes that is not cancelled."""
        self._stack = AsyncExitStack()
        self._world: World | None = None
        self._session_id = ""
        self._turns = 0

    async def voyage(self, store: str, *, cancelled: bool) -> Voyage:
        """Returns a turn that is about to be run."""
        if self._world is None:
            self._world = await self._stack.enter_async_context(running_world(store))
            await self._sail_unfaulted(self._world)
            note_places(kinds_on(store))
        if self._turns % _TURNS_A_SESSION == 0:
            self._session_id = await _session(self._world)
        self._turns += 1
        return Voyage(self._world, self._session_id, cancelled=cancelled)

    async def discard(self) -> None:
        """Ends the world; the next fault has a new one."""
        if self._world is not None:
            note_reached(self._world.store, self._world.controller.totals)
        await self._stack.aclose()
        self._stack, self._world, self._turns = AsyncExitStack(), None, 0

    async def _sail_unfaulted(self, world: World) -> None:
        """Learns what unfaulted turns reach, and how long one takes, when all is warm."""
        for cancelled in (True, False, False):
            world.controller.count_anew()
            voyage = Voyage(world, await _session(world), cancelled=cancelled)
            begun = asyncio.get_running_loop().time()
            await voyage.sail()
            self.unfaulted_seconds = voyage.settled_at - begun
            self.reached[cancelled] = dict(world.controller.counts)
            await voyage.check()


async def _session(world: World) -> str:
    return (await again(lambda: world.clients[0].create_session(world.agent_id))).session_id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds() -> AsyncGenerator[dict[tuple[str, int], Worlds]]:
    kept: dict[tuple[str, int], Worlds] = {}
    yield kept
    for each in kept.values():
        await each.discard()


@pytest.mark.parametrize(
    ("store", "lane", "number"), PLAN, ids=[f"{store}-lane{lane}-{number}" for store, lane, number in PLAN]
)
async def test_a_turn_outlives_a_fault(store: str, lane: int, number: int, worlds: dict[tuple[str, int], Worlds]):
    kept = worlds.setdefault((store, lane), Worlds())
    cancelled = number % _CANCELLED == _CANCELLED - 1
    voyage = await kept.voyage(store, cancelled=cancelled)
    fault = choose(store, SEED, number, kept.reached[cancelled])
    trigger = Trigger(fault.failpoint, fault.nth, lambda hit: fault.strike(voyage.world, hit))
    voyage.world.controller.arm(trigger)
    allowed = _PROMISED_SECONDS + 2 * kept.unfaulted_seconds
    outcome, seconds = "defect", 0.0
    try:
        seconds = await _sailed(voyage, trigger)
        await voyage.arrive(fault.chance)
        await voyage.check()
        assert seconds <= allowed, f"{seconds:.1f} s after the end of the fault, {allowed:.1f} s are allowed"
        outcome = "decided" if voyage.decided else "completed"
    except BaseException:
        print(f"{fault}\n{_told(voyage.world)}")  # noqa: T201 - pytest shows it with the failure
        await kept.discard()
        raise
    finally:
        if outcome != "defect":
            await fault.end(voyage.world)
        await voyage.close()
        note(
            Outcome(
                store,
                SEED,
                number,
                fault.kind,
                fault.victim,
                fault.failpoint,
                fault.nth,
                struck=trigger.begun,
                outcome=outcome,
                recoveries=voyage.recoveries,
                seconds=round(seconds, 2),
                allowed=round(allowed, 2),
            )
        )


async def _sailed(voyage: Voyage, trigger: Trigger) -> float:
    """Runs the turn; returns how long after the end of the fault it had ended, or asked."""
    await voyage.sail()
    voyage.world.controller.disarm()
    if not trigger.begun:
        return 0.0
    await trigger.ended.wait()
    if trigger.failure is not None:
        raise trigger.failure
    return max(0.0, voyage.settled_at - trigger.ended_at)


def _told(world: World) -> str:
    """Returns the last that each process has logged, but for calls that went well, and all defects whole."""
    told: list[str] = []
    for name in world.meshes:
        lines = [line for line in world.log(name).splitlines() if '"code": "OK"' not in line]
        # One that is said again and again hides how it came to that.
        lines = [line for line in lines if '"turn_not_followed"' not in line and "FollowTurn" not in line]
        told += [f"--- {name}", *(line[:600] for line in lines[-20:])]
        told += [json.loads(line)["exception"] for line in lines if '"exception": ' in line]
    return "\n".join(told)
