"""`./dev faults`: hits turns at the failpoints, counts what came of it, and says what no fault has reached."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.dev.layout import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NEEDS = {
    "full disk": "only root can mount a small disk",
    "clock moved": "the package libfaketime is not installed",
}
_OUTCOMES = ("completed", "decided", "defect")


def run(pytest: Sequence[str], arguments: Sequence[str]) -> int:
    """Makes the faults that the arguments choose, with the command `pytest`; returns an exit code."""
    chosen = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="turnwire-faults-") as folder:
        environment = os.environ | {
            "TURNWIRE_FAULTS": str(chosen.count),
            "TURNWIRE_FAULTS_SEED": str(chosen.seed),
            "TURNWIRE_FAULTS_STORE": chosen.store or "",
            "TURNWIRE_FAULTS_ONLY": "" if chosen.only is None else str(chosen.only),
            "TURNWIRE_FAULTS_KIND": chosen.kind,
            "TURNWIRE_FAULTS_PLACE": chosen.at,
            "TURNWIRE_FAULTS_RESULTS": folder,
        }
        code = subprocess.run([*pytest, "-m", chosen.marker], cwd=ROOT, env=environment, check=False).returncode
        outcomes = list(_lines(Path(folder), "*.outcomes-*.jsonl"))
        reached = list(_lines(Path(folder), "*.reached-*.jsonl"))
        places = list(_lines(Path(folder), "*.places-*.jsonl"))
    sys.stdout.write(report(outcomes, reached, places))
    return code


def report(
    outcomes: Sequence[dict[str, Any]], reached: Sequence[dict[str, int]], places: Sequence[dict[str, list[str]]]
) -> str:
    """Returns the tables of what was made and what came of it, as Markdown."""
    rows = defaultdict[tuple[str, str], Counter[str]](Counter)
    for each in outcomes:
        row = rows[each["store"], each["kind"]]
        row["made"] += 1
        row["struck"] += each["struck"]
        row[each["outcome"]] += 1
        row["recovered"] += each["recoveries"] > 0
    lines = ["| store | fault | made | struck | completed | decided | defects | recovered | slowest |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for (store, kind), row in sorted(rows.items()):
        slowest = max(each["seconds"] for each in outcomes if (each["store"], each["kind"]) == (store, kind))
        counts = [row[name] for name in ("made", "struck", *_OUTCOMES, "recovered")]
        lines.append(f"| {store} | {kind} | {' | '.join(map(str, counts))} | {slowest:.1f} s |")
    hit = {each["failpoint"] for each in outcomes if each["struck"]}
    met = {name for each in reached for name in each}
    there = {name for each in places for name in each["failpoints"]}
    lines += ["", f"Of {len(there)} failpoints {len(hit)} were hit, and {len(met)} reached. Not reached:"]
    lines += [f"  {name}" for name in sorted(there - met)] or ["  none"]
    made = {kind for each in places for kind in each["kinds"]}
    left_out = [f"{kind}: {why}" for kind, why in _NEEDS.items() if places and kind not in made]
    lines += [f"Left out here: {each}." for each in left_out]
    return "\n".join(lines) + "\n"


def _lines(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob(pattern)):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev faults", description="Hits turns with seeded faults, at failpoints.")
    parser.add_argument("count", type=int, nargs="?", default=24, metavar="N", help="how many, on both stores [24]")
    parser.add_argument("--seed", type=int, default=1, help="which ones [1]")
    parser.add_argument("--store", choices=["sqlite", "postgres"], help="on one store only")
    parser.add_argument("--only", type=int, metavar="K", help="only the one of this number, as a report names it")
    parser.add_argument("--kind", default="", help="only faults of this kind, as the table names it")
    parser.add_argument("--at", default="", metavar="NAME", help="only at failpoints whose names begin so")
    parser.add_argument("--marker", default="matrix", help="which tests: pytest's -m [matrix]")
    return parser
