"""How `./dev test` shares the tests among the cores: over a little suite with the hooks of ours."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.packaging.processes import has_ended, pid_in
from tools.dev.layout import ROOT
from tools.dev.stages import ON_ALL_CORES, counts

_CONFTEST = """
from tests.conftest import pytest_xdist_make_scheduler
"""
_SETTINGS = "[pytest]\nmarkers = model\naddopts = -p no:cacheprovider --import-mode=importlib\n"
_FILE = """
import os
import pathlib
import pytest

here = pathlib.Path(__file__)

def begin(name):
    with (here.parent / "begun").open("a") as begun:
        begun.write(f"{os.environ['PYTEST_XDIST_WORKER']} {here.stem} {name}\\n")

@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("address", ["a@b", "c::d"])
def test_light(address, number):
    begin("light")
"""
_FILE_WITH_MODEL = f"""{_FILE}
@pytest.mark.model
def test_of_the_model():
    begin("model")
"""
_STARTS_A_PROCESS = """
import pathlib
import subprocess
import pytest

here = pathlib.Path(__file__)

@pytest.fixture
def child():
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as process:
        here.with_suffix(".pid").write_text(f"{process.pid}\\n")
        yield process
        process.kill()

def test_it(child):
    child.wait()
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder for tests."""
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "pytest.ini").write_text(_SETTINGS)
    return tmp_path


def run(suite: Path) -> subprocess.Popen[str]:
    """Runs a suite on two workers."""
    command = [sys.executable, "-m", "pytest", "-q", *ON_ALL_CORES, "-n", "2", "-c", str(suite / "pytest.ini")]
    return subprocess.Popen(
        [*command, "--rootdir", str(suite), str(suite)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_tests_of_a_file_have_one_worker_and_all_files_with_the_model_too(suite: Path):
    plain, model = suite / "plain", suite / "model"
    for folder in (plain, model):
        folder.mkdir()
        for number in range(4):
            (folder / f"test_{number}.py").write_text(_FILE)
    (plain / "test_4.py").write_text(_FILE_WITH_MODEL)
    (model / "conftest.py").write_text("import pytest\nmodel = pytest.mark.model\n")
    with run(suite) as process:
        output, _ = process.communicate(timeout=100)

    assert 0 == process.returncode, output
    assert (73, 0) == counts(output.splitlines())
    workers: defaultdict[str, set[str]] = defaultdict(set)
    for folder in (plain, model):
        for line in (folder / "begun").read_text().splitlines():
            worker, file, _ = line.split()
            workers["model" if folder == model or file == "test_4" else file].add(worker)
    assert {"model", "test_0", "test_1", "test_2", "test_3"} == set(workers)
    assert dict.fromkeys(workers, 1) == {group: len(each) for group, each in workers.items()}
    assert 2 == len(set[str].union(*workers.values())), "one worker has run everything"


def test_failures_and_errors_of_workers_are_counted(suite: Path):
    (suite / "test_a.py").write_text("def test_a(): assert False\ndef test_b(): pass\n")
    (suite / "test_b.py").write_text("def test_a(missing): pass\n")
    with run(suite) as process:
        output, _ = process.communicate(timeout=100)

    assert 1 == process.returncode
    assert (1, 2) == counts(output.splitlines()), output


def test_a_test_that_ends_its_worker_is_a_failure_and_not_run_again(suite: Path):
    (suite / "test_a.py").write_text("import os\ndef test_a(): os._exit(3)\n")
    with run(suite) as process:
        output, _ = process.communicate(timeout=100)

    assert 0 != process.returncode
    assert (0, 1) == counts(output.splitlines()), output


def test_ctrl_c_ends_the_workers_and_what_their_fixtures_have_started(suite: Path):
    files = [suite / "test_a.py", suite / "test_b.py"]
    for file in files:
        file.write_text(_STARTS_A_PROCESS)
    with run(suite) as process:
        started = [pid_in(file.with_suffix(".pid")) for file in files]
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert 2 == process.returncode
    assert all(has_ended(pid) for pid in started)
    assert time.monotonic() - begun < 50
