"""`python -m tools.dev COMMAND`: what `./dev` runs once the environment is there."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tools.dev import generation, stages
from tools.dev.layout import ROOT


def main(arguments: list[str]) -> int:
    """Runs a command; returns its exit code."""
    command, *rest = arguments or ["help"]
    # The tests start hundreds of processes: were their modules compiled each time, a fifth of each start would be that.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    match command:
        case "check":
            return stages.check()
        case "test":
            return stages.test(rest)
        case "ci":
            return stages.ci()
        case "faults":
            chosen = _faults_parser().parse_args(rest)
            return stages.faults(chosen.count, chosen.seed)
        case "generate":
            return generation.write()
        case "format":
            return generation.format_sources()
        case "lock":
            return subprocess.run([str(ROOT / "tools/dev/lock.sh")], check=False).returncode
        case _:
            sys.stderr.write(f"no such command: {command}\n")
            return 2


def _faults_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev faults", description="Hit turns with seeded faults.")
    parser.add_argument("count", type=int, nargs="?", default=24, metavar="N", help="how many [24]")
    parser.add_argument("--seed", type=int, default=1, help="which ones [1]")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
