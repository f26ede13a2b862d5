"""`tools.dev.stages`: what a stage's output counts as, and how it ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.packaging.processes import has_ended, pid_in
from tools.dev.layout import ROOT
from tools.dev.stages import LONGER, SAMPLED, SELECTION, STAGES, Stage, counts

if TYPE_CHECKING:
    from pathlib import Path

_CI = """
import sys
from tools.dev.stages import Stage, ci
limit = float(sys.argv[1])
sys.exit(ci([Stage(str(number), ["bash", "-c", script], limit) for number, script in enumerate(sys.argv[2:], 1)]))
"""


MARKERS = (*LONGER, *SAMPLED, "everyday")


def ci(*scripts: str, limit: float = 30) -> tuple[int, list[str]]:
    """Returns the exit code and the lines of `./dev ci` with these scripts as its stages."""
    done = subprocess.run(
        [sys.executable, "-c", _CI, str(limit), *scripts],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines()


def stage_line(lines: list[str], number: int) -> str:
    """Returns what a stage wrote of itself, without its seconds."""
    line = next(line for line in lines if line.startswith(f"== {number}: "))
    return line.rpartition(", ")[0]


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("12 passed in 3.21s", (12, 0)),
        ("2 failed, 12 passed, 1 skipped in 3.21s", (12, 2)),
        ("1 failed, 12 passed, 3 warnings, 2 errors in 3.21s", (12, 3)),
        ("1 error in 0.30s", (0, 1)),
        ("12 deselected in 0.30s", (0, 0)),
        ("=== 1 failed, 2 passed in 63.21s (0:01:03) ===", (2, 1)),
        ("check: 8 passed, 1 failed in 30 s", (8, 1)),
    ],
)
def test_a_summary_is_counted(summary: str, expected: tuple[int, int]):
    assert expected == counts(["tests/test_a.py ..", summary])


@pytest.mark.parametrize(
    "line", ["E   AssertionError: 3 passed, 0 failed", "== test: 3 passed, 0 failed, 2 s ==", "all 3 passed in 2s", ""]
)
def test_other_lines_are_not(line: str):
    assert (2, 1) == counts(["1 failed, 2 passed in 1.00s", line])
    assert (0, 0) == counts([line])


def test_stages_are_shown_with_their_limits_and_added_up():
    code, lines = ci("echo 3 passed in 1s", "echo 1 failed, 4 passed in 1s; exit 1")

    assert 1 == code
    assert ["== 1 (limit 0.5 min) ==", "3 passed in 1s"] == lines[:2]
    assert "== 1: 3 passed, 0 failed" == stage_line(lines, 1)
    assert "== 2: 4 passed, 1 failed" == stage_line(lines, 2)
    assert lines[-1].startswith("ci: 7 passed, 1 failed in ")


def test_all_passed_is_success():
    code, lines = ci("echo 3 passed in 1s", "echo 4 passed in 1s")

    assert 0 == code
    assert lines[-1].startswith("ci: 7 passed, 0 failed in ")


def test_a_stage_without_a_passed_test_has_failed():
    code, lines = ci("echo 4 skipped in 1s", "true")

    assert 1 == code
    assert "== 1: 0 passed, 1 failed" == stage_line(lines, 1)
    assert "== 2: 0 passed, 1 failed" == stage_line(lines, 2)


def test_a_stage_that_crashed_after_its_summary_has_failed():
    code, lines = ci("echo 3 passed in 1s; kill -9 $$")

    assert 1 == code
    assert "== 1: 3 passed, 1 failed" == stage_line(lines, 1)


def test_a_stage_is_ended_at_its_limit_with_all_that_it_started(tmp_path: Path):
    pid = tmp_path / "pid"
    code, lines = ci(f"sleep 300 & echo $! >{pid}; echo begun; wait", "echo 1 passed in 1s", limit=1)

    assert 1 == code
    assert ["begun", "1 was ended at its limit of 1 s"] == lines[1:3]
    assert "== 1: 0 passed, 1 failed" == stage_line(lines, 1)
    assert "== 2: 1 passed, 0 failed" == stage_line(lines, 2)
    assert has_ended(pid_in(pid))


def test_a_stage_that_talks_without_end_is_ended_too_and_that_is_a_failure_of_its_own():
    _, lines = ci("echo 1 failed, 2 passed in 1s; while :; do echo x; sleep 0.01; done", limit=1)

    assert "== 1: 2 passed, 2 failed" == stage_line(lines, 1)


def test_a_process_that_a_stage_left_in_a_session_of_its_own_does_not_hold_it_up(tmp_path: Path):
    pid = tmp_path / "pid"
    begun = time.monotonic()
    _, lines = ci(f"setsid sleep 20 & echo $! >{pid}; echo 1 passed in 1s")
    taken = time.monotonic() - begun
    os.kill(pid_in(pid), signal.SIGKILL)

    assert "== 1: 1 passed, 0 failed" == stage_line(lines, 1)
    assert taken < 15


def test_sigterm_ends_the_stage_that_runs_and_tells_what_was_counted(tmp_path: Path):
    pid = tmp_path / "pid"
    command = [sys.executable, "-c", _CI, "60", "echo 2 passed in 1s", f"echo $$ >{pid}; exec sleep 300"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    stage = pid_in(pid)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert output.splitlines()[-1].startswith("ci: 2 passed, 1 failed in ")
    assert 1 == process.returncode
    assert has_ended(stage)


def selects(stage: Stage, markers: set[str]) -> bool:
    """True when a stage runs a test with these markers."""
    expression = SELECTION if stage.name == "test" else stage.command[-1]
    return bool(eval(expression, {}, {name: name in markers for name in MARKERS}))  # pytest's language is Python's here


@pytest.mark.parametrize("count", range(len(MARKERS) + 1))
def test_whatever_its_markers_each_test_is_in_a_stage(count: int):
    stages = [stage for stage in STAGES if stage.name != "check"]
    for markers in itertools.combinations(MARKERS, count):
        assert [stage.name for stage in stages if selects(stage, set(markers))], f"no stage runs what is {markers}"


def test_a_longer_stage_runs_what_is_marked_for_it_and_the_tests_of_every_day_some_of_it():
    by_name = {stage.name: stage for stage in STAGES}
    for marker in (*SAMPLED, *LONGER):
        stage = by_name["faults" if marker == "matrix" else marker]
        assert selects(stage, {marker})
        assert not selects(by_name["test"], {marker})
        assert (marker in SAMPLED) == selects(by_name["test"], {marker, "everyday"})
        assert not selects(stage, set())


def test_the_markers_of_the_stages_are_pytests():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert set(MARKERS) <= {line.partition(":")[0] for line in lines}
