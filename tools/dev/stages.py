"""What is checked and tested, in stages with a time limit each."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

from tools.dev.layout import BIN, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SOURCES = [name for name in ("services", "gateway", "tests", "tools", "bench", "examples") if (ROOT / name).is_dir()]


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


PYTEST = [sys.executable, "-m", "pytest", "-q"]
# Two a core: most tests wait for processes. In the order of the files: those with the fewest tests, which would come
# last, take the longest. A test that ends its process ends them all: in a new process it would only do so again.
ON_ALL_CORES = [
    f"--numprocesses={min(8, 2 * (os.cpu_count() or 1))}",
    "--dist=loadfile",
    "--no-loadscope-reorder",
    "--max-worker-restart=0",
]
_DEV = [sys.executable, "-m", "tools.dev"]
LONGER = ("matrix", "bars", "soak", "wheel", "sandbox", "browser")
"""The markers of tests that `./dev test` leaves to stages of their own."""
SAMPLED = ("faults", "model")
"""The markers whose stages run all their tests, and `./dev test` those of them that are marked `everyday`."""
_NOT_LONGER = " and ".join(f"not {marker}" for marker in LONGER)
SELECTION = f"{_NOT_LONGER} and (everyday or not ({' or '.join(SAMPLED)}))"
"""The tests of `./dev test`."""
STAGES = (
    Stage("check", [*_DEV, "check"], 2 * 60),
    Stage("test", [*_DEV, "test"], 13 * 60),
    Stage("model", [*PYTEST, "-m", f"model and not ({' or '.join(LONGER)})"], 5 * 60),
    Stage("bars", [*PYTEST, "-m", "bars"], 6 * 60),
    Stage("faults", [*_DEV, "faults", "200", "--marker", "faults or matrix"], 12 * 60),
    Stage("soak", [*PYTEST, "-m", "soak"], 4 * 60),
    Stage("sandbox", [*PYTEST, "-m", "sandbox"], 4 * 60),
    Stage("wheel", [*PYTEST, "-m", "wheel"], 4 * 60),
    Stage("browser", [*PYTEST, "-m", "browser"], 4 * 60),
)
"""The stages of `./dev ci`. With the set-up (6 min, in `./dev`) their limits are 60 minutes in all."""


class Ended(Exception):
    """SIGTERM came: what runs is ended, and what was counted so far is told."""


def check() -> int:
    """Runs format, lint, types, protos, generation drift, licences and layout side by side; returns an exit code."""
    begun = time.monotonic()
    parts = {
        # The longest first, or it would run alone at the end.
        "types": [str(BIN / "basedpyright")],
        "generation": [sys.executable, "-c", _DRIFT],
        "layout": [*PYTEST, "tests/test_layout.py"],
        "licences": [sys.executable, "-m", "tools.docs.third_party", "--check"],
        "reference": [sys.executable, "-m", "tools.docs.reference", "--check"],
        "format": [str(BIN / "ruff"), "format", "--check", "--diff", *_SOURCES],
        "lint": [str(BIN / "ruff"), "check", *_SOURCES],
        "proto lint": [str(BIN / "buf"), "lint"],
        "proto format": [str(BIN / "buf"), "format", "-d", "--exit-code"],
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


def test(arguments: Sequence[str]) -> int:
    """Runs the tests but for the longer stages (`-m` chooses others); returns pytest's exit code.

    All cores share them, unless files or folders are named, of which more than a sample of the faults and of the
    model is run: `-n 0` has them run in one process, `-n 2` in two.
    """
    chosen = any(argument.startswith("-m") for argument in arguments)
    named = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments)
    selection = [] if chosen else ["-m", _NOT_LONGER if named else SELECTION]
    workers = [] if named else ON_ALL_CORES
    return subprocess.run([*PYTEST, *workers, *selection, *arguments], cwd=ROOT, check=False).returncode


def ci(stages: Iterable[Stage] = STAGES) -> int:
    """Runs all stages, each within its limit, and counts; returns an exit code."""
    signal.signal(signal.SIGTERM, _end)
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    try:
        for stage in stages:
            if _sigterm.is_set():
                raise Ended
            _say(f"== {stage.name} (limit {stage.limit / 60:g} min) ==")
            outcome = _stage(stage)
            _say(f"== {stage.name}: {outcome.passed} passed, {outcome.failed} failed, {outcome.seconds:.0f} s ==")
            outcomes.append(outcome)
    except Ended:
        _say("ended by SIGTERM")
        outcomes.append(Outcome("end", 0, 1, 0, ""))
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    _say(f"ci: {passed} passed, {failed} failed in {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


_DRIFT = """
import sys
from tools.dev.generation import drift
problems = drift()
sys.stdout.write("".join(f"{problem}\\n" for problem in problems))
sys.exit(bool(problems))
"""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


_sigterm = Event()


def _end(*_: object) -> None:
    # Raised from here, it could get lost with a process that has begun and that nobody holds yet.
    _sigterm.set()


def _part(name: str, command: list[str]) -> Outcome:
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    failed = int(done.returncode != 0)
    return Outcome(name, 1 - failed, failed, time.monotonic() - begun, done.stdout + done.stderr)


def _stage(stage: Stage) -> Outcome:
    """Runs a stage, shows what it prints as it comes, and counts its tests."""
    begun = time.monotonic()
    process = subprocess.Popen(
        stage.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, late = _watch(process, begun + stage.limit)
    finally:
        _kill(process)  # what the stage left running, too
    if late:
        _say(f"{stage.name} was ended at its limit of {stage.limit:g} s")
    passed, failed = counts(output.splitlines())
    if late or (process.returncode != 0 and not failed):
        failed += 1
    if process.returncode == 0 and not passed:
        failed += 1  # a stage without a test has proved nothing
    return Outcome(stage.name, passed, failed, time.monotonic() - begun, output)


def _watch(process: subprocess.Popen[bytes], deadline: float) -> tuple[str, bool]:
    """Shows what a process prints until it ends or its time is over; returns that, and whether it was late."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    blocks: list[bytes] = []
    late = False
    while not late:
        if _sigterm.is_set():
            raise Ended
        late = time.monotonic() > deadline
        if select.select([pipe], [], [], 0.2)[0]:
            block = os.read(pipe, 65536)
            if not block:
                break
            blocks.append(block)
            sys.stdout.buffer.write(block)
            sys.stdout.flush()
        elif process.poll() is not None:
            break  # something that it left running holds the pipe open
    while not late and process.poll() is None:  # it closed its output and goes on
        if _sigterm.is_set():
            raise Ended
        late = time.monotonic() > deadline
        time.sleep(0.05)
    return b"".join(blocks).decode(errors="replace"), late


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_SUMMARY = re.compile(r"^(?:check: |=+ )?(?:\d+ [a-z]+, )*\d+ [a-z]+ in \d")
_COUNT = re.compile(r"(\d+) (passed|failed|errors?)\b")


def counts(lines: Sequence[str]) -> tuple[int, int]:
    """Returns (passed, failed) of the last line that is pytest's summary or that of `check`."""
    summary = next((line for line in reversed(lines) if _SUMMARY.match(line)), "")
    found = [(int(number), kind) for number, kind in _COUNT.findall(summary)]
    return (
        sum(number for number, kind in found if kind == "passed"),
        sum(number for number, kind in found if kind != "passed"),
    )
