"""What is checked and tested, in stages with a time limit each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tools.dev.layout import BIN, ROOT

_SOURCES = [name for name in ("services", "tests", "tools", "bench", "examples") if (ROOT / name).is_dir()]


@dataclass(frozen=True)
class Stage:
    """A command with a limit, in seconds."""

    name: str
    command: list[str]
    limit: float


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    name: str
    passed: int
    failed: int
    seconds: float
    output: str


_PYTEST = [sys.executable, "-m", "pytest", "-q"]
_STAGES = [
    Stage("check", [sys.executable, "-m", "tools.dev", "check"], 180),
    Stage("test", [sys.executable, "-m", "tools.dev", "test"], 15 * 60),
    Stage("soak", [*_PYTEST, "-m", "soak"], 15 * 60),
    Stage("wheel", [*_PYTEST, "-m", "wheel"], 10 * 60),
]
"""The stages of `./dev ci`. Those of coming versions (sandbox, clients, images, k8s, browser) come with them."""


def check() -> int:
    """Runs format, lint, types, proto lint, generation drift and layout side by side; returns an exit code."""
    begun = time.monotonic()
    parts = {
        "format": [str(BIN / "ruff"), "format", "--check", "--diff", *_SOURCES],
        "lint": [str(BIN / "ruff"), "check", *_SOURCES],
        "types": [str(BIN / "basedpyright")],
        "proto lint": [str(BIN / "buf"), "lint"],
        "proto format": [str(BIN / "buf"), "format", "-d", "--exit-code"],
        "generation": [sys.executable, "-c", _DRIFT],
        "reference": [sys.executable, "-m", "tools.docs.reference", "--check"],
        "layout": [*_PYTEST, "tests/test_layout.py"],
    }
    with ThreadPoolExecutor(max_workers=4) as pool:
        outcomes = list(pool.map(lambda item: _part(*item), parts.items()))
    for outcome in outcomes:
        if outcome.failed:
            sys.stdout.write(f"{outcome.output.rstrip()}\n")
        sys.stdout.write(f"{'FAILED' if outcome.failed else 'ok':>6}  {outcome.name}  {outcome.seconds:.1f} s\n")
    failed = sum(outcome.failed for outcome in outcomes)
    sys.stdout.write(f"check: {len(outcomes) - failed} passed, {failed} failed in {time.monotonic() - begun:.0f} s\n")
    return 1 if failed else 0


def test(arguments: list[str]) -> int:
    """Runs the tests but for the longer stages; returns pytest's exit code."""
    selection = arguments or ["-m", "not soak and not wheel"]
    return subprocess.run([*_PYTEST, *selection], cwd=ROOT, check=False).returncode


def faults(arguments: list[str]) -> int:
    """Runs N seeded faults (`N [--seed S]`); returns pytest's exit code."""
    environment = os.environ | {"TURNWIRE_FAULTS": arguments[0] if arguments else "24"}
    if "--seed" in arguments:
        environment["TURNWIRE_FAULTS_SEED"] = arguments[arguments.index("--seed") + 1]
    command = [*_PYTEST, "-m", "faults"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def ci() -> int:
    """Runs all stages, each within its limit, and ends with one line that counts; returns an exit code."""
    outcomes: list[Outcome] = []
    for stage in _STAGES:
        sys.stdout.write(f"== {stage.name} (limit {stage.limit / 60:.0f} min) ==\n")
        sys.stdout.flush()
        outcome = _stage(stage)
        counts = f"{outcome.passed} passed, {outcome.failed} failed"
        sys.stdout.write(f"== {stage.name}: {counts}, {outcome.seconds:.0f} s ==\n")
        sys.stdout.flush()
        outcomes.append(outcome)
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    sys.stdout.write(f"{passed} passed, {failed} failed\n")
    return 1 if failed else 0


_DRIFT = """
import sys
from tools.dev.generation import drift
problems = drift()
sys.stdout.write("".join(f"{problem}\\n" for problem in problems))
sys.exit(bool(problems))
"""


def _part(name: str, command: list[str]) -> Outcome:
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    failed = int(done.returncode != 0)
    return Outcome(name, 1 - failed, failed, time.monotonic() - begun, done.stdout + done.stderr)


def _stage(stage: Stage) -> Outcome:
    """Runs a stage, shows what it prints as it comes, and counts its tests."""
    begun = time.monotonic()
    lines: list[str] = []
    process = subprocess.Popen(
        stage.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(_wait, process, stage.limit)
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()
        late = waiting.result()
    if late:
        sys.stdout.write(f"{stage.name} was ended at its limit of {stage.limit:.0f} s\n")
    passed, failed = _counts(lines)
    if late or (process.returncode != 0 and not failed):
        failed += 1
    if process.returncode == 0 and not passed:
        failed += 1  # a stage without a test has proved nothing
    return Outcome(stage.name, passed, failed, time.monotonic() - begun, "")


def _wait(process: subprocess.Popen[str], limit: float) -> bool:
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return True
    return False


def _counts(lines: list[str]) -> tuple[int, int]:
    """Returns (passed, failed) of the last line that counts tests."""
    for line in reversed(lines):
        passed = re.search(r"(\d+) passed", line)
        failed = re.search(r"(\d+) failed", line)
        errors = re.search(r"(\d+) errors?", line)
        if passed or failed or errors:
            bad = (int(failed[1]) if failed else 0) + (int(errors[1]) if errors else 0)
            return int(passed[1]) if passed else 0, bad
    return 0, 0
