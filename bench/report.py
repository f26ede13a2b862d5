"""What the figures say: medians with their spread, as Markdown for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.measuring import Repetition, Results, Run
    from bench.plan import Plan
    from bench.store import Stored

_SERVICES = ("agent", "inference")
_RELAYS = ("relay", "source")


def as_json(plan: Plan, results: Results) -> dict[str, Any]:
    """Returns everything: the plan, the machine, and each single figure."""
    return {"machine": machine(), "plan": asdict(plan), **asdict(results)}


def as_markdown(plan: Plan, results: Results) -> str:
    """Returns the tables."""
    parts = [_heading(plan, results), _first_token(plan, results), _cpu(plan, results), _rate(plan, results)]
    return "\n\n".join([*parts, _store(plan, results), _memory(results), _verified(results)]) + "\n"


def machine() -> dict[str, str]:
    """Returns on what the figures were made."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "time": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": model,
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "uvloop": version("uvloop"),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value that so many of the values do not exceed: one of them, never one between."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def _heading(plan: Plan, results: Results) -> str:
    about = machine()
    others = [run.others for repetition in results.repetitions for run in _runs(repetition)]
    loads = ", ".join(f"{repetition.load_before[0]:.2f}" for repetition in results.repetitions)
    return "\n".join(
        [
            f"{about['time']}, {about['cores']} x {about['processor']}, {about['system']}, Python {about['python']},"
            f" grpcio {about['grpcio']}, protobuf {about['protobuf']}, uvloop {about['uvloop']}.",
            f"Upstream `{plan.upstream}`, {plan.tokens} tokens a turn, repetitions: {plan.repetitions}. Figures are"
            " medians of the repetitions, in brackets the least and the most of them.",
            f"Others kept {median(others):.2f} cores busy meanwhile (median of the runs; most {max(others):.2f});"
            f" load before each repetition: {loads}.",
        ]
    )


def _first_token(plan: Plan, results: Results) -> str:
    names = list(results.repetitions[0].first_token)
    direct = names[0]
    rows: list[list[str]] = []
    for name in ["relay", "mesh"]:
        row = [name]
        for share in (0.5, 0.99):
            row.append(_spread([percentile(rep.first_token[name], share) * 1e3 for rep in results.repetitions]))
            row.append(_spread([_added(rep, name, direct, share) * 1e3 for rep in results.repetitions]))
        rows.append(row)
    own = [_spread([percentile(rep.first_token[direct], s) * 1e3 for rep in results.repetitions]) for s in (0.5, 0.99)]
    rows.insert(0, [f"{direct}, called directly", own[0], "", own[1], ""])
    ratio = _spread(
        [
            percentile(rep.first_token["mesh"], 0.5) / percentile(rep.first_token["relay"], 0.5)
            for rep in results.repetitions
        ]
    )
    return _section(
        "Time to the first token, ms",
        f"One turn at a time, {plan.first_token_samples} of each in turn. Added: less {direct} called directly, at the"
        f" same percentile. The mesh takes {ratio} times as long as the relay (p50).",
        _table(["", "p50", "added p50", "p99", "added p99"], rows),
    )


def _cpu(plan: Plan, results: Results) -> str:
    rows: list[list[str]] = []
    for title, pick in _loads(plan):
        mesh = [pick(rep)["mesh"] for rep in results.repetitions]
        relay = [pick(rep)["relay"] for rep in results.repetitions]
        rows.append(
            [
                title,
                *(_spread([_per_turn(run, [name]) for run in mesh]) for name in _SERVICES),
                _spread([_per_turn(run, _SERVICES) for run in mesh]),
                _spread([_per_turn(run, _SERVICES) * 1e3 / run.tokens for run in mesh]),
                _spread([_per_turn(run, _RELAYS) for run in relay]),
                _spread([_per_turn(m, _SERVICES) / _per_turn(r, _RELAYS) for m, r in zip(mesh, relay, strict=True)]),
                _spread([_per_turn(run, ["client"]) for run in mesh]),
                _spread([_per_turn(run, ["client"]) for run in relay]),
            ]
        )
    idle = {name: median([rep.idle_cpu_seconds[name] for rep in results.repetitions]) * 1e3 for name in _SERVICES}
    header = ["", *_SERVICES, "both", "us a token", "relay + source", "ratio", "client of mesh", "client of relay"]
    return _section(
        f"CPU milliseconds a {plan.tokens}-token turn",
        "The client is this bench, which reads and keeps all events; it stands apart. Idle, agent and inference use"
        f" {idle['agent']:.1f} and {idle['inference']:.1f} ms a second, which the paced rows contain.",
        _table(header, rows),
    )


def _rate(plan: Plan, results: Results) -> str:
    rows: list[list[str]] = []
    for at_once in plan.at_once:
        mesh = [rep.at_once[at_once]["mesh"] for rep in results.repetitions]
        relay = [rep.at_once[at_once]["relay"] for rep in results.repetitions]
        rows.append(
            [
                str(at_once),
                _spread([_turns_a_second(run) for run in mesh]),
                _spread([_turns_a_second(run) * run.tokens for run in mesh]),
                *(_spread([percentile(run.first_seconds, share) * 1e3 for run in mesh]) for share in (0.5, 0.99)),
                _spread([_turns_a_second(run) for run in relay]),
                _spread([_turns_a_second(m) / _turns_a_second(r) for m, r in zip(mesh, relay, strict=True)]),
            ]
        )
    header = ["at once", "turns/s", "tokens/s", "first token p50, ms", "p99, ms", "relay, turns/s", "mesh / relay"]
    return _section(
        "Turns a second, upstream at once",
        f"{plan.tokens} tokens each; client, services and upstream share the cores.",
        _table(header, rows),
    )


def _store(plan: Plan, results: Results) -> str:
    text = sum(len(f"t100-{number} ") for number in range(1, plan.tokens + 1))
    rows: list[list[str]] = []
    for at_once, (turns, sqlite) in results.store.items():
        kept = [_kept(stored, turns) for stored in (sqlite, results.postgres[at_once][1])]
        for name, values in zip(("SQLite", "PostgreSQL"), kept, strict=True):
            rows.append([str(at_once), name, *(_number(value) for value in values)])
        ratios = (f"{other / value:.2f}" if value else "" for value, other in zip(*kept, strict=True))
        rows.append([str(at_once), "ratio", *ratios])
    header = ["at once", "", "commits", "bytes the database grew", "bytes written to the log"]
    return _section(
        "Commits, bytes and CPU a turn, on both stores",
        "Commits that write, counted in the write-ahead log of each. PostgreSQL's log holds a page whole when it is"
        " first changed after a checkpoint, and its tables grow by pages of 8 KiB ahead of need. CPU is that of the"
        " agent, then with that of all processes of the server; the ratios are PostgreSQL to SQLite. The text of an"
        f" answer is about {text:,} bytes.",
        _table([*header, "agent, CPU ms", "with the server, CPU ms"], rows),
    )


def _kept(stored: Stored, turns: int) -> list[float]:
    agent = stored.agent_cpu_seconds * 1e3
    both = agent + stored.database_cpu_seconds * 1e3
    return [value / turns for value in (stored.commits, stored.grown_bytes, stored.written_bytes, agent, both)]


def _memory(results: Results) -> str:
    rows = [
        [name, *(f"{value / 1e6:.0f}" for value in (before.now, after.now, after.peak))]
        for (name, before), after in zip(results.memory_before.items(), results.memory_after.values(), strict=True)
    ]
    return _section(
        "Resident memory, MB",
        "Before the first turn and after the last.",
        _table(["", "before", "after", "peak"], rows),
    )


def _verified(results: Results) -> str:
    counts = ", ".join(f"{count:,} of {name}" for name, count in results.turns_verified.items())
    return f"Verified: {counts}; no bad turn."


def _loads(plan: Plan) -> list[tuple[str, Callable[[Repetition], dict[str, Run]]]]:
    def at_once(count: int) -> Callable[[Repetition], dict[str, Run]]:
        return lambda repetition: repetition.at_once[count]

    loads = [(f"upstream at once, {count} turns", at_once(count)) for count in plan.at_once]
    return [*loads, (f"20 tokens/s, {plan.paced_at_once} turns", lambda repetition: repetition.paced)]


def _runs(repetition: Repetition) -> list[Run]:
    runs = [run for by_name in repetition.at_once.values() for run in by_name.values()]
    return [*runs, *repetition.paced.values()]


def _added(repetition: Repetition, name: str, direct: str, share: float) -> float:
    return percentile(repetition.first_token[name], share) - percentile(repetition.first_token[direct], share)


def _per_turn(run: Run, processes: Iterable[str]) -> float:
    return sum(run.cpu_seconds[name] for name in processes) * 1e3 / run.turns


def _turns_a_second(run: Run) -> float:
    return run.turns / run.seconds


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _number(values[0])
    return f"{_number(median(values))} [{_number(min(values))}-{_number(max(values))}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _section(title: str, text: str, table: str) -> str:
    return f"### {title}\n\n{text}\n\n{table}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
