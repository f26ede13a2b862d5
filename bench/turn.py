"""`python -m bench.turn`: what a turn through the mesh costs, and a bare relay of the same tokens beside it.

Every turn is verified; one that is wrong ends the bench without figures, with exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvloop

from bench.lab import lab
from bench.measuring import measure
from bench.plan import Plan
from bench.report import as_json, as_markdown
from bench.verification import BadTurn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.measuring import Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.turn", description=__doc__)
    parser.add_argument("--upstream", choices=["openai", "scripted"], default="openai")
    parser.add_argument("--upstream-module", default="bench.upstream", help="what is run as the OpenAI server")
    parser.add_argument("--repetitions", type=int, help="how often everything is measured")
    parser.add_argument("--quick", action="store_true", help="shows that it works, in half a minute; no figures of use")
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="every single figure, as JSON: into a file beside the tables, or without a name instead of them",
    )
    chosen = parser.parse_args(arguments)
    plan = (
        Plan.quick(chosen.upstream, chosen.upstream_module)
        if chosen.quick
        else Plan(upstream=chosen.upstream, upstream_module=chosen.upstream_module)
    )
    if chosen.repetitions is not None:
        if chosen.repetitions < 1:
            parser.error("--repetitions is at least 1")
        plan = dataclasses.replace(plan, repetitions=chosen.repetitions)
    # Standard output is for the result alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        results = uvloop.run(_measured(plan))
    except BadTurn as bad:
        sys.stderr.write(f"a bad turn, so there is no result: {bad}\n")
        return 1
    figures = json.dumps(as_json(plan, results), indent=1) + "\n"
    if chosen.json == "-":
        sys.stdout.write(figures)
        return 0
    if chosen.json is not None:
        Path(chosen.json).write_text(figures, encoding="utf-8")
    sys.stdout.write(as_markdown(plan, results))
    return 0


async def _measured(plan: Plan) -> Results:
    async with lab(plan) as ready:
        return await measure(ready, plan)


if __name__ == "__main__":
    sys.exit(main())
