"""`.ci/run`: whatever becomes of `./dev ci`, its last line counts and its exit code agrees."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.packaging.processes import has_ended, pid_in
from tools.dev.layout import ROOT
from tools.dev.stages import STAGES

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [stage.name for stage in STAGES]
GOOD = "".join(f"== {name}: {number} passed, 0 failed, 3 s ==\n" for number, name in enumerate(NAMES, 1))
SUM = sum(range(1, len(NAMES) + 1))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with nothing but `.ci/run`."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    return tmp_path


def write_dev(checkout: Path, script: str) -> None:
    """Gives the folder a `./dev` that is this script."""
    dev = checkout / "dev"
    dev.write_text(f"#!/usr/bin/env bash\n{script}\n")
    dev.chmod(0o755)


def run(checkout: Path, script: str, **environment: str) -> tuple[int, list[str]]:
    """Returns the exit code of `.ci/run` over such a `./dev`, and the lines that it printed."""
    write_dev(checkout, script)
    done = subprocess.run(
        [checkout / ".ci" / "run"],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines()


def printing(text: str, code: int = 0) -> str:
    return f"cat <<'TEXT'\n{text}TEXT\nexit {code}"


def test_all_stages_passed(checkout: Path):
    code, lines = run(checkout, printing(GOOD + f"ci: {SUM} passed, 0 failed in 18 s\n"))

    assert f"{SUM} passed, 0 failed" == lines[-1]
    assert 0 == code
    assert 1 == len([line for line in lines if re.fullmatch(r"\d+ passed, \d+ failed", line)])
    assert GOOD.splitlines() == lines[-1 - len(NAMES) : -1]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_stage_is_a_failure(checkout: Path, name: str):
    text = "".join(line for line in GOOD.splitlines(keepends=True) if f" {name}:" not in line)
    code, lines = run(checkout, printing(text))

    assert f"{SUM - NAMES.index(name) - 1} passed, 1 failed" == lines[-1]
    assert f"== {name}: missing ==" in lines
    assert 1 == code


def test_failures_are_added_up(checkout: Path):
    text = GOOD.replace("1 passed, 0 failed", "1 passed, 2 failed").replace("2 passed, 0 failed", "2 passed, 3 failed")
    code, lines = run(checkout, printing(text, 1))

    assert f"{SUM} passed, 5 failed" == lines[-1]
    assert 1 == code


def test_a_stage_that_ran_no_test_is_a_failure(checkout: Path):
    passed = NAMES.index("wheel") + 1
    code, lines = run(checkout, printing(GOOD.replace(f"== wheel: {passed} passed", "== wheel: 0 passed")))

    assert f"{SUM - passed} passed, 1 failed" == lines[-1]
    assert 1 == code


def test_an_exit_code_that_no_stage_explains_is_a_failure(checkout: Path):
    code, lines = run(checkout, printing(GOOD, 3))

    assert f"{SUM} passed, 1 failed" == lines[-1]
    assert 1 == code


def test_a_set_up_that_failed_counts_every_stage(checkout: Path):
    code, lines = run(checkout, "echo no network >&2; exit 1")

    assert "no network" in lines
    assert f"0 passed, {len(NAMES)} failed" == lines[-1]
    assert 1 == code


def test_a_crash_keeps_what_was_counted(checkout: Path):
    code, lines = run(checkout, f"{printing(GOOD.splitlines(keepends=True)[0]).rpartition('exit')[0]}kill -9 $$")

    assert f"1 passed, {len(NAMES) - 1} failed" == lines[-1]
    assert 1 == code


def test_tests_that_print_such_lines_are_not_counted(checkout: Path):
    code, lines = run(checkout, printing(f"{GOOD}E  == test: 900 passed, 0 failed, 1 s ==\n99 passed, 0 failed\n"))

    assert f"{SUM} passed, 0 failed" == lines[-1]
    assert 0 == code


def test_the_time_limit_ends_it(checkout: Path):
    first = GOOD.splitlines(keepends=True)[0]
    code, lines = run(checkout, f"echo '{first.strip()}'; exec sleep 300", TURNWIRE_CI_SECONDS="1")

    assert f"1 passed, {len(NAMES) - 1} failed" == lines[-1]
    assert 1 == code


def test_a_process_that_was_left_running_does_not_hold_it_up(checkout: Path):
    pid = checkout / "pid"
    code, lines = run(checkout, f"sleep 300 & echo $! >{pid}\n{printing(GOOD)}")
    os.kill(pid_in(pid), signal.SIGKILL)

    assert f"{SUM} passed, 0 failed" == lines[-1]
    assert 0 == code


@pytest.mark.parametrize("moment", [0, 0.005, 0.02, 0.05])
def test_sigterm_at_any_moment_of_its_start_ends_it(checkout: Path, moment: float):
    write_dev(checkout, "exec sleep 300")
    process = subprocess.Popen([checkout / ".ci" / "run"], stdout=subprocess.PIPE, text=True)
    time.sleep(moment)  # the place of the fault: a time is what it is chosen by
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert process.returncode in (1, -signal.SIGTERM)  # by the signal: before its first line had run
    assert process.returncode < 0 or f"0 passed, {len(NAMES)} failed" == output.splitlines()[-1]


def test_sigterm_ends_what_runs_and_counts(checkout: Path):
    write_dev(checkout, "echo $$ >started; exec sleep 300")
    process = subprocess.Popen([checkout / ".ci" / "run"], stdout=subprocess.PIPE, text=True)
    sleeper = pid_in(checkout / "started")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert f"0 passed, {len(NAMES)} failed" == output.splitlines()[-1]
    assert 1 == process.returncode
    assert has_ended(sleeper)


def test_its_stages_are_those_of_dev_ci():
    text = (ROOT / ".ci" / "run").read_text()
    assert f"stages=({' '.join(NAMES)})" in text


def test_the_limits_are_an_hour_in_all():
    set_up = re.search(r"^SET_UP_SECONDS=(\d+)$", (ROOT / "dev").read_text(), re.MULTILINE)
    assert set_up is not None
    assert int(set_up[1]) + sum(stage.limit for stage in STAGES) <= 3600
