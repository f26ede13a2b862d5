"""What is done to a mesh, each with a beginning at a failpoint and an end."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.plan import KIND, PLACE
from tests.faults.world import FAKETIME, LEASE_SECONDS, can_mount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.controller import Hit
    from tests.faults.world import World

_HOUR = 3600


@dataclass
class Fault:
    """One fault: what, where and when; the same number of the same seed is the same fault."""

    store: str
    seed: int
    number: int
    kind: str
    failpoint: str
    nth: int
    chance: random.Random = field(repr=False)
    victim: str = ""
    """The process that was hit, or whose connections were."""

    async def strike(self, world: World, hit: Hit) -> None:
        """Has the fault begin and end; lets the process that stands at the failpoint go on, if it lives."""
        try:
            await KINDS[self.kind](self, world, hit)
        finally:
            hit.release()

    async def end(self, world: World) -> None:
        """Sets right what lasts for longer than the turn: a clock. The next fault finds leases by the right one."""
        if self.kind == "clock moved" and self.victim:
            world.set_clock(self.victim, 0)
            await world.settle()

    def __str__(self) -> str:
        """Says what it is, and how it is repeated."""
        where = f"{self.kind} of {self.victim or '-'} at {self.failpoint} ({self.nth})"
        chosen = (f" --kind '{KIND}'" if KIND else "") + (f" --at {PLACE}" if PLACE else "")
        again = f"./dev faults --store {self.store} --seed {self.seed} --only {self.number}{chosen}"
        return f"{self.store}: {where}: {again}"


async def _kill(fault: Fault, world: World, hit: Hit) -> None:
    fault.victim = world.process_of(hit.pid)
    await world.kill(fault.victim)
    await world.start(fault.victim)


async def _stop(fault: Fault, world: World, hit: Hit) -> None:
    fault.victim = world.process_of(hit.pid)
    await world.signal(fault.victim, signal.SIGSTOP)
    try:
        hit.release()
        await asyncio.sleep(LEASE_SECONDS * fault.chance.uniform(1.1, 1.8))
    finally:
        await world.signal(fault.victim, signal.SIGCONT)


async def _cut(fault: Fault, world: World, hit: Hit) -> None:
    fault.victim = fault.chance.choice(sorted(world.proxies))
    proxy = world.proxies[fault.victim]
    proxy.refuses = True
    try:
        proxy.cut()
        hit.release()
        await asyncio.sleep(fault.chance.uniform(0, 1.5))
    finally:
        proxy.refuses = False


async def _one_way(fault: Fault, world: World, hit: Hit) -> None:
    fault.victim = fault.chance.choice(sorted(world.proxies))
    proxy = world.proxies[fault.victim]
    answers = fault.chance.random() < 0.5
    try:
        proxy.hold(requests=not answers, answers=answers)
        hit.release()
        await asyncio.sleep(LEASE_SECONDS * fault.chance.uniform(0.2, 1.8))
    finally:
        proxy.release()


async def _database(fault: Fault, world: World, hit: Hit) -> None:
    assert world.postgres is not None
    fault.victim = "postgres"
    await asyncio.to_thread(world.postgres.kill)
    hit.release()
    await asyncio.sleep(LEASE_SECONDS * fault.chance.uniform(0, 1.5))
    await asyncio.to_thread(world.postgres.start)


async def _disk(fault: Fault, world: World, hit: Hit) -> None:
    fault.victim = "disk"
    try:
        await asyncio.to_thread(world.disk.fill)
        hit.release()
        await asyncio.sleep(LEASE_SECONDS * fault.chance.uniform(0.2, 1.5))
    finally:
        await asyncio.to_thread(world.disk.free)
    if world.postgres is not None and not world.postgres.running:
        # It ends itself when it cannot write its log; whoever runs it starts it again.
        await asyncio.to_thread(world.postgres.start)


async def _clock(fault: Fault, world: World, hit: Hit) -> None:
    candidates = [world.process_of(hit.pid), *(["postgres"] if world.postgres is not None else [])]
    fault.victim = fault.chance.choice(candidates)
    world.set_clock(fault.victim, fault.chance.choice([-1, 1]) * fault.chance.choice([5, _HOUR, 12 * _HOUR]))


KINDS: dict[str, Callable[[Fault, World, Hit], Awaitable[None]]] = {
    "SIGKILL": _kill,
    "SIGSTOP": _stop,
    "cut connections": _cut,
    "one-way connections": _one_way,
    "database killed": _database,
    "full disk": _disk,
    "clock moved": _clock,
}


def kinds_on(store: str) -> list[str]:
    """Returns the kinds of faults that can be made here, on a store."""
    missing = set[str]()
    if store != "postgres":
        missing.add("database killed")
    if not can_mount():
        missing.add("full disk")
    if FAKETIME is None:
        missing.add("clock moved")
    return [kind for kind in KINDS if kind not in missing]


def choose(store: str, seed: int, number: int, reached: dict[str, int]) -> Fault:
    """Returns a fault out of those that an unfaulted turn offers: how often it reaches each failpoint.

    Kinds take turns, so that few faults are of all kinds.
    """
    chance = random.Random(f"{store} {seed} {number}")
    kinds = [kind for kind in kinds_on(store) if kind in {KIND or kind}]
    kind = kinds[(number + seed) % len(kinds)]
    failpoint = chance.choice(sorted(name for name in reached if name.startswith(PLACE)))
    nth = chance.randint(1, min(reached[failpoint], _MOST))
    return Fault(store, seed, number, kind, failpoint, nth, chance)


_MOST = 20
"""A failpoint is hit at one of its first so many times: of deltas there may be one less in another run."""
