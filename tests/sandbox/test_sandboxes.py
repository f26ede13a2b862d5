"""The sandboxes of a runner: how many, how long, one run at a time, and nothing left when anybody goes."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest

from tests.sandbox.running import Ending, Runner, credentials, running
from turnwire.errors import from_rpc_error
from turnwire.runtime.hosting import NO_ISOLATION
from turnwire.sandbox_runner import processes
from turnwire.sandbox_runner.interior import seccomp, workspace
from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2 as messages

pytestmark = pytest.mark.timeout(90)

ENGINES = ["bubblewrap", "landlock"]


def _reason(error: grpc.aio.AioRpcError) -> str:
    return from_rpc_error(error, service="sandbox_runner").reason_name


async def _until(condition: object, seconds: float = 20.0) -> None:
    """Returns when a condition of the host holds."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def _gone(held: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in held)


def _held(numbers: list[int]) -> list[psutil.Process]:
    """Returns processes, told from those that get their numbers after their end."""
    held: list[psutil.Process] = []
    for number in numbers:
        with suppress(psutil.NoSuchProcess):
            held.append(psutil.Process(number))
    return held


def _inside(runner: Runner) -> list[int]:
    return processes.below(runner.process.pid)


async def test_as_many_as_there_may_be_and_room_again_when_one_closes():
    async with running(max_sandboxes=2, warm=0) as runner:
        one, two = await runner.open("one"), await runner.open("two")
        assert one.engine in ENGINES
        await runner.open("one")  # is open
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await runner.open("three")
        assert grpc.StatusCode.RESOURCE_EXHAUSTED == failed.value.code()
        assert "ERROR_REASON_OVERLOADED" == _reason(failed.value)
        await two.close()
        await two.close()
        await runner.open("three")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await two.run("1")
        assert "ERROR_REASON_NOT_FOUND" == _reason(failed.value)


@pytest.mark.parametrize(("warm", "waits"), [(0, False), (1, True)])
async def test_as_many_wait_as_there_are_to_be(warm: int, waits: bool):
    async with running(warm=warm, preload=["json"]) as runner:
        assert waits == bool(_inside(runner))
        box = await runner.open()
        assert "2" == (await box.run("1 + 1")).finished.value_repr
        await box.close()
        await _until(lambda: waits == bool(_inside(runner)))


async def test_one_that_nobody_uses_is_closed_with_its_processes():
    async with running(idle_seconds=1.0, warm=0) as runner:
        box = await runner.open()
        await box.run("1")
        sandbox = _held(_inside(runner))
        await _until(lambda: _gone(sandbox))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await box.run("1")
        assert "ERROR_REASON_NOT_FOUND" == _reason(failed.value)


async def test_runs_of_one_sandbox_wait_for_each_other_and_other_sandboxes_do_not():
    async with running(warm=0) as runner:
        one, other = await runner.open(), await runner.open()
        await one.run("log = []")
        code = "import time\nlog.append('in')\ntime.sleep(0.3)\nlog.append('out')"
        # One sandbox is occupied for as long as a file is missing, which the test gives it.
        holding = one.call("import os, time\nprint('held', flush=True)\ntime.sleep(60)", seconds=60)
        while (await holding.read()).WhichOneof("payload") != "stdout":
            pass
        assert "2" == (await other.run("1 + 1")).finished.value_repr
        holding.cancel()
        await one.run("log = []")
        await asyncio.gather(*(one.run(code) for _ in range(3)))
        assert str(["in", "out"] * 3) == (await one.run("log")).finished.value_repr


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_caller_that_goes_ends_what_runs_and_the_next_is_told(engine: str):
    async with running(engine=engine, warm=0) as runner:
        box = await runner.open()
        await box.run("x = 1\nopen('kept', 'w').write('x')")
        call = box.call(
            "import subprocess, time\nprint('go', flush=True)\nsubprocess.run(['sleep', '600'])", seconds=600
        )
        while (await call.read()).WhichOneof("payload") != "stdout":
            pass
        await _until(lambda: any(_name(number) == "sleep" for number in _inside(runner)))
        began = time.monotonic()
        call.cancel()
        await _until(lambda: not any(_name(number) == "sleep" for number in _inside(runner)))
        assert time.monotonic() - began < 2.0
        ran = await box.run("import os\n'x' in globals(), os.path.exists('kept')")
        assert "(False, True)" == ran.finished.value_repr
        assert (True, False) == (ran.started.restarted, ran.started.workspace_lost)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda value: value.name)
async def test_a_runner_that_goes_leaves_no_process(engine: str, number: signal.Signals):
    async with running(engine=engine, warm=1) as runner:
        box = await runner.open()
        call = box.call(
            "import subprocess\nprint('go', flush=True)\nsubprocess.Popen(['setsid', 'sleep', '600']).wait()",
            seconds=600,
        )
        while (await call.read()).WhichOneof("payload") != "stdout":
            pass
        await _until(lambda: any(_name(number) == "sleep" for number in _inside(runner)))
        inside = _held(_inside(runner))
        runner.process.send_signal(number)
        await runner.process.wait()
        await _until(lambda: _gone(inside))
        call.cancel()


async def test_the_files_of_a_runner_that_was_killed_go_when_the_next_one_starts():
    code = "import os\nopen('mine', 'w').write('x')\nos.getcwd()"
    async with running(engine="landlock", warm=0) as living, running(engine="landlock", warm=0) as killed:
        there = await living.open()
        here = Path((await there.run(code)).finished.value_repr.strip("'"))
        left = Path((await (await killed.open()).run(code)).finished.value_repr.strip("'"))
        killed.process.kill()
        await killed.process.wait()
        assert (left / "mine").is_file()
        async with running(engine="landlock", warm=0):
            assert (here / "mine").is_file()
            assert not left.parents[1].exists()
        assert "'x'" == (await there.run("open('mine').read()")).finished.value_repr


@pytest.mark.parametrize("engine", ENGINES)
async def test_files_beyond_their_room_cost_the_sandbox_and_the_next_run_is_told(engine: str):
    async with running(engine=engine, workspace_files=200, warm=1) as runner:
        box = await runner.open()
        ran = await box.run("for number in range(2000): open(f'file-{number}', 'w').close()")
        assert Ending.ENDING_WORKSPACE_LIMIT == ran.finished.ending
        assert "200 files" in ran.finished.failure.message
        ran = await box.run("import os\nos.listdir('.')")
        assert "[]" == ran.finished.value_repr
        assert (True, True) == (ran.started.restarted, ran.started.workspace_lost)
        assert "files" in ran.started.notice
        assert not (await box.run("1")).started.restarted


async def test_a_sandbox_that_is_killed_from_outside_is_replaced():
    # None that waits: one that is just being started would be stopped half-way.
    async with running(warm=0) as runner:
        box = await runner.open()
        await box.run("1")
        inside = [first for outer in processes.children(runner.process.pid) for first in processes.children(outer)]
        for outer in processes.children(runner.process.pid):
            # What the runner has started does not tell it of the end inside.
            os.kill(outer, signal.SIGSTOP)
            processes.kill_children(outer)
        await _until(lambda: not any(processes.lives(number) for number in inside))
        ran = await box.run("2")
        assert "2" == ran.finished.value_repr
        assert (True, True) == (ran.started.restarted, ran.started.workspace_lost)


async def test_a_caller_that_goes_while_it_writes_leaves_a_sandbox_that_works():
    async with running(warm=0) as runner:
        box = await runner.open()
        piece = messages.WriteFilesRequest(
            sandbox_id=box.id, file=messages.WorkspaceFile(path="a", data=b"x" * 1_000_000)
        )
        for number in range(20):
            call = runner.stub.WriteFiles(metadata=credentials())
            for _ in range(number % 4 + 1):
                await call.write(piece)
            call.cancel()
            assert str(number) == (await box.run(str(number))).finished.value_repr


async def test_without_isolation_the_service_does_not_start_and_says_what_to_do():
    async with running(engine="bubblewrap", bubblewrap="/bin/false", wait=False) as runner:
        assert NO_ISOLATION == await runner.process.wait()
        assert "cannot be isolated on this machine" in runner.log
        assert "bubblewrap: " in runner.log
        assert "To do: install bubblewrap and allow user namespaces" in runner.log
        assert "Traceback" not in runner.log


async def test_an_engine_that_lets_code_out_is_not_used(tmp_path: Path):
    # It starts what it is told to start, with no walls of namespaces: the first process refuses to live there.
    loose = tmp_path / "bwrap"
    loose.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    loose.chmod(0o755)
    async with running(engine="bubblewrap", bubblewrap=str(loose), wait=False) as runner:
        assert NO_ISOLATION == await runner.process.wait()
        assert "cannot be isolated on this machine" in runner.log


async def test_the_folder_of_a_runner_is_removed_whatever_code_has_made_in_it():
    async with running(engine="landlock", warm=0) as runner:
        box = await runner.open()
        place = (await box.run("import os\nos.getcwd()")).finished.value_repr.strip("'")
        assert Path(place).is_dir()
        await box.run(
            "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\nopen('deep', 'w').close()\n"
            "os.chdir(os.environ['HOME'])\nos.symlink('/etc', 'link')",
            seconds=30,
        )
        await box.close()
        assert not Path(place).exists()
        assert Path("/etc/passwd").exists()


def test_the_filter_is_known_for_both_machines_and_refused_for_others():
    for machine in ("x86_64", "aarch64"):
        for own_files in (True, False):
            assert 0 == len(seccomp.program(own_files=own_files, machine=machine)) % 8
    with pytest.raises(NotImplementedError, match="riscv64"):
        seccomp.program(own_files=True, machine="riscv64")


def test_a_name_travels_only_when_it_means_the_same_file_everywhere():
    for good in ("a", "a/b.png", "ü/ñ", ".hidden", "a..b"):
        assert workspace.can_travel(good), good
    for bad in ("", "/a", "a/", "..", "a/../b", "./a", "a//b", "a\\b", "a\nb", "a\0b", "\udc80", "x" * 1025):
        assert not workspace.can_travel(bad), bad


def test_only_plain_files_are_read_and_nobody_is_waited_for(tmp_path: Path):
    (tmp_path / "plain").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [(0, b"ab"), (2, b"c")] == list(workspace.pieces(str(tmp_path), "plain", 3, 2))
    assert [] == list(workspace.pieces(str(tmp_path), "link", 10, 10))
    assert [] == list(workspace.pieces(str(tmp_path), "pipe", 10, 10))
    found = workspace.survey(str(tmp_path), 100)
    assert (["plain"], 3, 2) == (list(found.files), found.count, found.odd)


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_small_models_forget_to_import_is_there(engine: str):
    async with running(engine=engine, warm=0) as runner:
        box = await runner.open()
        ran = await box.run("math.gcd(12, 18), statistics.mean([1, 2, 6]), datetime.date(2024, 2, 29).isoformat()")
        assert "(6, 3, '2024-02-29')" == ran.finished.value_repr
