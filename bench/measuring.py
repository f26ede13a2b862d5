"""The measurements: each target runs the same turns, in turn with the others."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from bench.processes import Memory, cpu_seconds, memory
from bench.script import Script
from bench.store import Stored, counted, counted_in_postgres

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from bench.lab import Lab
    from bench.plan import Plan
    from bench.targets import Answer, Mesh, Target

_log = structlog.get_logger("bench")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Run:
    """Turns of one target, run together."""

    turns: int
    tokens: int
    seconds: float
    first_seconds: list[float]
    cpu_seconds: dict[str, float]
    """By process; `client` is this one, which reads all streams."""
    others: float
    """How many cores something that is not the bench kept busy meanwhile."""


@dataclass(slots=True)
class Repetition:
    """One pass over everything. Runs are by target's name."""

    load_before: tuple[float, float, float] = (0.0, 0.0, 0.0)
    first_token: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    at_once: dict[int, dict[str, Run]] = field(default_factory=dict[int, dict[str, Run]])
    paced: dict[str, Run] = field(default_factory=dict[str, Run])
    idle_cpu_seconds: dict[str, float] = field(default_factory=dict[str, float])
    """CPU time of each process for a second in which nothing is asked."""


@dataclass(slots=True)
class Results:
    """All that a bench has found."""

    repetitions: list[Repetition] = field(default_factory=list[Repetition])
    store: dict[int, tuple[int, Stored]] = field(default_factory=dict[int, tuple[int, Stored]])
    """By turns at once: how many turns, and what they left in SQLite."""
    postgres: dict[int, tuple[int, Stored]] = field(default_factory=dict[int, tuple[int, Stored]])
    """The same in PostgreSQL."""
    memory_before: dict[str, Memory] = field(default_factory=dict[str, Memory])
    memory_after: dict[str, Memory] = field(default_factory=dict[str, Memory])
    turns_verified: dict[str, int] = field(default_factory=dict[str, int])


async def measure(lab: Lab, plan: Plan) -> Results:
    """Runs the whole plan; returns its figures.

    Raises:
        BadTurn: a turn was wrong.
    """
    return await _Bench(lab, plan).measured()


class _Bench:
    def __init__(self, lab: Lab, plan: Plan) -> None:
        self._lab = lab
        self._plan = plan
        self._results = Results()
        self._processes = {**lab.processes, "client": os.getpid()}

    async def measured(self) -> Results:
        lab, plan, results = self._lab, self._plan, self._results
        results.memory_before = self._memory()
        for target in (lab.direct, lab.relay, lab.mesh, lab.on_postgres):
            await self._run(target, _scripts(plan.warm_up_turns, plan.tokens), 4)
        for number in range(plan.repetitions):
            _log.info("repetition", number=number + 1, of=plan.repetitions)
            # Who comes second finds warmer caches, or a warmer machine: they take turns at it.
            order: list[Target] = [lab.mesh, lab.relay] if number % 2 else [lab.relay, lab.mesh]
            results.repetitions.append(await self._repetition(order))
        for at_once in plan.at_once:
            turns = max(plan.store_turns, at_once)
            in_file = counted(lab.database)
            results.store[at_once] = turns, await self._stored(lab.mesh, in_file, turns, at_once)
            in_server = counted_in_postgres(lab.postgres, lab.postgres_database)
            results.postgres[at_once] = turns, await self._stored(lab.on_postgres, in_server, turns, at_once)
        results.memory_after = self._memory()
        return results

    async def _repetition(self, order: list[Target]) -> Repetition:
        plan = self._plan
        found = Repetition(load_before=os.getloadavg())
        found.idle_cpu_seconds = await self._idle()
        found.first_token = await self._first_token([self._lab.direct, *order])
        for at_once, turns in plan.at_once.items():
            found.at_once[at_once] = {
                target.name: await self._run(target, _scripts(turns, plan.tokens), at_once) for target in order
            }
        for target in order:
            scripts = _scripts(plan.paced_at_once, plan.tokens, paced=True)
            found.paced[target.name] = await self._run(target, scripts, plan.paced_at_once, gap=plan.paced_gap)
        return found

    async def _first_token(self, targets: Sequence[Target]) -> dict[str, list[float]]:
        count, tokens = self._plan.first_token_samples, self._plan.first_token_tokens
        places = {target.name: await target.prepare(count, tokens) for target in targets}
        scripts = {target.name: _scripts(count, tokens) for target in targets}
        answers: dict[str, list[Answer]] = {target.name: [] for target in targets}
        for index in range(count):
            for target in targets:
                answer = await target.turn(places[target.name][index], scripts[target.name][index])
                answers[target.name].append(answer)
        for name, seen in answers.items():
            await self._verify(name, seen)
        return {name: [answer.first_seconds for answer in seen] for name, seen in answers.items()}

    async def _run(
        self,
        target: Target,
        scripts: Sequence[Script],
        at_once: int,
        places: Sequence[str] | None = None,
        *,
        gap: float = 0.0,
    ) -> Run:
        """Runs turns, `at_once` of them at a time; the first of them begin `gap` seconds after each other."""
        if places is None:
            places = await target.prepare(len(scripts), scripts[0].tokens)
        waiting = iter(list(zip(places, scripts, strict=True)))
        answers: list[Answer] = []

        async def worker(number: int) -> None:
            await asyncio.sleep(number * gap)
            for place, script in waiting:
                answers.append(await target.turn(place, script))

        before, busy_before = self._cpu(), _busy_seconds()
        begun = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(at_once):
                    group.create_task(worker(number))
        except ExceptionGroup as several:
            # One is enough to know, and the caller asks for it by its class.
            raise several.exceptions[0] from several
        seconds = time.perf_counter() - begun
        busy, after = _busy_seconds() - busy_before, self._cpu()
        used = {name: after[name] - before[name] for name in after}
        await self._verify(target.name, answers)
        return Run(
            turns=len(answers),
            tokens=scripts[0].tokens,
            seconds=seconds,
            first_seconds=[answer.first_seconds for answer in answers],
            cpu_seconds={name: used[name] for name in (*target.processes, "client")},
            others=max(0.0, busy - sum(used.values())) / seconds,
        )

    async def _verify(self, name: str, answers: Sequence[Answer]) -> None:
        for answer in answers:
            answer.verify()
        if answers and answers[-1].stored is not None:
            await answers[-1].stored()
        verified = self._results.turns_verified
        verified[name] = verified.get(name, 0) + len(answers)

    async def _stored(self, mesh: Mesh, counting: AbstractContextManager[Stored], turns: int, at_once: int) -> Stored:
        # Made before the count begins: a session is a commit of its own.
        places = await mesh.prepare(turns, self._plan.tokens)
        with counting as stored:
            run = await self._run(mesh, _scripts(turns, self._plan.tokens), at_once, places)
        stored.agent_cpu_seconds = sum(used for name, used in run.cpu_seconds.items() if name.startswith("agent"))
        return stored

    async def _idle(self) -> dict[str, float]:
        before = self._cpu()
        await asyncio.sleep(self._plan.idle_seconds)
        return {name: (used - before[name]) / self._plan.idle_seconds for name, used in self._cpu().items()}

    def _cpu(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._processes.items()}

    def _memory(self) -> dict[str, Memory]:
        return {name: memory(pid) for name, pid in self._processes.items()}


def _busy_seconds() -> float:
    """Returns what all cores of the machine have worked so far."""
    with open("/proc/stat", encoding="ascii") as stat:
        ticks = [int(value) for value in stat.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _scripts(count: int, tokens: int, *, paced: bool = False) -> list[Script]:
    return [Script(f"t{next(_numbers)}-", tokens, paced=paced) for _ in range(count)]
