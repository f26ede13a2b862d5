"""`python -m tools.dev COMMAND`: what `./dev` runs once the environment is there."""

from __future__ import annotations

import os
import subprocess
import sys

from tools.dev import faults, generation, stages
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
            return faults.run([*stages.PYTEST, *stages.ON_ALL_CORES], rest)
        case "generate":
            return generation.write()
        case "format":
            return generation.format_sources()
        case "lock":
            return subprocess.run([str(ROOT / "tools/dev/lock.sh")], check=False).returncode
        case _:
            sys.stderr.write(f"no such command: {command}\n")
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
