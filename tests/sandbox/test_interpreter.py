"""The interpreter of a sandbox, as a model finds it: state, output, errors, files, figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from textwrap import dedent
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.sandbox.running import Box, Ending, Runner, credentials, running
from turnwire.errors import from_rpc_error
from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2 as messages

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

OUTPUT_BYTES = 100_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncGenerator[Runner]:
    """A runner on the engine that it chooses itself."""
    async with running(output_bytes=OUTPUT_BYTES, returned_files=5, returned_bytes=1_000_000, warm=1) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def box(runner: Runner) -> AsyncGenerator[Box]:
    """A sandbox of the test's own."""
    opened = await runner.open()
    yield opened
    await opened.close()


async def test_variables_imports_and_files_stay_from_run_to_run(box: Box):
    await box.run("import math\nradius = 2\nopen('note.txt', 'w').write('kept')")
    ran = await box.run("(round(math.pi * radius**2, 3), open('note.txt').read())")
    assert "(12.566, 'kept')" == ran.finished.value_repr
    assert Ending.ENDING_COMPLETED == ran.finished.ending
    assert not ran.finished.HasField("failure")
    assert not ran.started.restarted


async def test_the_value_of_the_last_expression_comes_back_and_none_does_not(box: Box):
    assert "3" == (await box.run("1 + 1\n1 + 2")).finished.value_repr
    assert "" == (await box.run("None")).finished.value_repr
    assert "" == (await box.run("x = 5")).finished.value_repr
    assert "'é🎈'" == (await box.run("'é🎈'")).finished.value_repr
    assert "10" == (await box.run("x * 2")).finished.value_repr
    assert "10" == (await box.run("_")).finished.value_repr


@pytest.mark.parametrize("closing", ["}", '"}', "}\n"])
async def test_the_end_of_the_call_is_no_part_of_the_code(box: Box, closing: str):
    assert "42" == (await box.run(f"total = 6 * 7\ntotal{closing}")).finished.value_repr
    assert "{1: '}'}" == (await box.run("{1: '}'}")).finished.value_repr
    wrong = await box.run(f"total = 6 * (7{closing}")
    assert "SyntaxError" in wrong.finished.failure.message


async def test_output_comes_as_it_is_written_and_before_the_end(box: Box):
    # The run waits for a file that is only written once the first line has come.
    call = box.call(
        "import os, time\nprint('first', flush=True)\nwhile not os.path.exists('/tmp/never'): time.sleep(1)"
    )
    try:
        async with asyncio.timeout(10):
            seen = [await call.read(), await call.read()]
    finally:
        call.cancel()
    assert ["started", "stdout"] == [response.WhichOneof("payload") for response in seen]
    assert "first\n" == seen[1].stdout


async def test_characters_are_never_split(box: Box):
    ran = await box.run(
        "import os, time\nfor byte in 'é🎈'.encode():\n    os.write(1, bytes([byte]))\n    time.sleep(0.02)\n"
        "os.write(2, b'\\xff!')"
    )
    assert "é🎈" == ran.stdout
    assert "\ufffd!" == ran.stderr


async def test_an_error_shows_the_lines_of_the_code_and_none_of_ours(box: Box):
    ran = await box.run("def divide(a, b):\n    return a / b\n\ndivide(1, 0)")
    assert Ending.ENDING_RAISED == ran.finished.ending
    assert "ZeroDivisionError: division by zero" == ran.finished.failure.message
    assert "return a / b" in ran.stderr
    assert "divide(1, 0)" in ran.stderr
    assert "interpreter.py" not in ran.stderr
    # The same interpreter goes on.
    assert "0.5" == (await box.run("divide(1, 2)")).finished.value_repr


async def test_a_syntax_error_points_at_its_place(box: Box):
    ran = await box.run("x = (1,\nprint('never')")
    assert Ending.ENDING_RAISED == ran.finished.ending
    assert ran.finished.failure.message.startswith("SyntaxError")
    assert "^" in ran.stderr
    assert "" == ran.stdout


@pytest.mark.parametrize(
    ("code", "ending", "restarted"),
    [
        ("import sys\nsys.exit()", Ending.ENDING_COMPLETED, False),
        ("import sys\nsys.exit(3)", Ending.ENDING_RAISED, False),
        ("import os\nos._exit(3)", Ending.ENDING_DIED, True),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", Ending.ENDING_DIED, True),
        ("import ctypes\nctypes.string_at(0)", Ending.ENDING_DIED, True),
        ("import os\nos.closerange(0, 1000)", Ending.ENDING_DIED, True),
    ],
)
async def test_code_that_leaves_ends_its_run_and_the_next_one_is_told(
    box: Box, code: str, ending: int, restarted: bool
):
    await box.run("open('kept.txt', 'w').write('x')")
    ran = await box.run(code)
    assert ending == ran.finished.ending, ran.finished
    ran = await box.run("import os\nos.path.exists('kept.txt')")
    assert "True" == ran.finished.value_repr
    assert restarted == ran.started.restarted
    assert restarted == ("anew" in ran.started.notice)
    assert not ran.started.workspace_lost


async def test_nobody_answers_a_question(box: Box):
    ran = await box.run("name = input('Who? ')")
    assert ran.finished.failure.message.startswith("EOFError: input() is not available")
    assert "''" == (await box.run("import sys\nsys.stdin.read()")).finished.value_repr


async def test_the_call_is_in_the_environment(box: Box):
    code = (
        "import os, subprocess\nsubprocess.run(['sh', '-c', 'echo $TURNWIRE_CALL_ID'])\nos.environ['TURNWIRE_CALL_ID']"
    )
    for call_id in ("call_a", "call_b"):
        ran = await box.run(code, call_id=call_id)
        assert f"{call_id}\n" == ran.stdout
        assert repr(call_id) == ran.finished.value_repr or f"'{call_id}'" == ran.finished.value_repr


async def test_too_much_output_is_cut_and_said(box: Box):
    ran = await box.run("print('x' * 1_000_000)\nimport sys\nprint('y' * 1000, file=sys.stderr)\n'done'")
    assert OUTPUT_BYTES == len(ran.stdout) + len(ran.stderr)
    assert 1 == len(ran.notices)
    assert f"{OUTPUT_BYTES} bytes" in ran.notices[0]
    assert "'done'" == ran.finished.value_repr
    # The next run has its own allowance.
    assert 3 == len((await box.run("print('ab')")).stdout)


async def test_threads_and_programs_run_inside(box: Box):
    ran = await box.run(
        dedent(
            """
            import subprocess, threading
            found = []
            threads = [threading.Thread(target=found.append, args=(number,)) for number in range(5)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            said = subprocess.run(['sh', '-c', 'echo from a program'], capture_output=True, text=True).stdout
            sorted(found), said
            """
        )
    )
    assert "([0, 1, 2, 3, 4], 'from a program\\n')" == ran.finished.value_repr


async def test_a_child_of_the_interpreter_that_goes_on_is_no_second_interpreter(box: Box):
    ran = await box.run(
        "import os\nchild = os.fork()\nif child: os.waitpid(child, 0)\nprint('once' if child else 'child')"
    )
    assert ["child", "once"] == sorted(ran.stdout.split())
    assert "1" == (await box.run("1")).finished.value_repr


async def test_made_changed_and_removed_files_come_back_and_others_do_not(box: Box):
    ran = await box.run(
        "import os\nos.mkdir('a')\nopen('a/b.bin', 'wb').write(bytes(range(256)) * 1000)\nopen('c', 'w').close()"
    )
    assert {"a/b.bin": bytes(range(256)) * 1000, "c": b""} == ran.files
    ran = await box.run("open('a/b.bin')\n1")
    assert ({}, []) == (ran.files, ran.removed)
    # The time of a change cannot be set back.
    ran = await box.run(
        "status = os.stat('c')\nopen('c', 'w').write('x')\nopen('c', 'w').close()\n"
        "os.utime('c', ns=(status.st_atime_ns, status.st_mtime_ns))\nos.unlink('a/b.bin')"
    )
    assert ({"c": b""}, ["a/b.bin"]) == (ran.files, ran.removed)


async def test_what_is_no_plain_file_or_too_much_is_left_out_and_said(box: Box):
    ran = await box.run(
        dedent(
            """
            import os
            os.symlink('/etc/hostname', 'link')
            os.mkfifo('pipe')
            os.mkdir('up')
            for name in (b'bad-\\xff', b'two\\nlines', b'back\\\\slash', b'plain'):
                open(name, 'w').write('x')
            """
        )
    )
    assert {"plain": b"x"} == ran.files
    assert any("5 entries" in notice for notice in ran.notices), ran.notices
    ran = await box.run("for number in range(9): open(f'file-{number}', 'w').write('x')")
    assert [f"file-{number}" for number in range(5)] == sorted(ran.files)
    assert any("4 changed files" in notice and "file-8" in notice for notice in ran.notices), ran.notices
    ran = await box.run("open('large', 'wb').write(b'x' * 1_000_001)\nopen('small', 'w').write('y')")
    assert {"small": b"y"} == ran.files
    assert ["large"] == ran.left_out
    assert any("large" in notice for notice in ran.notices)


async def test_figures_come_back_as_pictures(box: Box):
    ran = await box.run(
        dedent(
            """
            import matplotlib.pyplot as plt
            plt.plot([1, 2, 3])
            plt.show()
            plt.figure()
            plt.plot([3, 2, 1])
            plt.savefig('mine.png')
            plt.figure()
            plt.hist([1, 1, 2])
            """
        ),
        seconds=60,
    )
    assert ["figure-1.png", "figure-2.png", "mine.png"] == sorted(ran.files), ran.stderr
    assert all(data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 2000 for data in ran.files.values())
    # They are closed, and a figure that was drawn before an error is not lost.
    ran = await box.run("assert not plt.get_fignums()\nplt.plot([1])\n1 / 0")
    assert ["figure-3.png"] == sorted(ran.files)
    assert Ending.ENDING_RAISED == ran.finished.ending


async def test_pandas_is_there(box: Box):
    ran = await box.run(
        "import numpy as np, pandas as pd\nint(pd.DataFrame({'a': np.arange(5)})['a'].sum())", seconds=60
    )
    assert "10" == ran.finished.value_repr, ran.stderr


async def test_our_own_package_is_not_there(box: Box):
    for name in ("turnwire.runtime", "turnwire.sandbox_runner.service", "grpc", "structlog"):
        ran = await box.run(f"import {name}")
        assert ran.finished.failure.message.startswith("ModuleNotFoundError"), name


async def test_files_of_the_caller_are_there_and_do_not_come_back(box: Box):
    large = bytes(range(256)) * 10_000
    assert 2 == await box.write({"data/table.csv": b"a,b\n1,2\n", "large.bin": large}, piece=1_000_000)
    ran = await box.run("import hashlib\nopen('data/table.csv').read(), len(open('large.bin', 'rb').read())")
    assert f"('a,b\\n1,2\\n', {len(large)})" == ran.finished.value_repr
    assert {} == ran.files
    assert 1 == await box.write({"large.bin": b"short"})
    assert "5" == (await box.run("len(open('large.bin', 'rb').read())")).finished.value_repr


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a\nb", "a\0b", "x" * 2000])
async def test_a_file_of_the_caller_has_a_plain_name(box: Box, path: str):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await box.write({path: b"x"})
    assert "file.path" in [violation.field for violation in _typed(failed.value).violations]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sandbox_id": ""}, "sandbox_id"),
        ({"sandbox_id": "../up"}, "sandbox_id"),
        ({"call_id": ""}, "call_id"),
        ({"call_id": "a b"}, "call_id"),
        ({"code": ""}, "code"),
        ({"code": "a\0b"}, "code"),
        ({"limit": {"seconds": 0}}, "limit"),
        ({"limit": {"seconds": 3601}}, "limit"),
    ],
)
async def test_a_wrong_request_is_refused_with_its_field(box: Box, change: dict[str, Any], field: str):
    values: dict[str, Any] = {"sandbox_id": box.id, "call_id": "call_1", "code": "1", **change}
    call = box.runner.stub.RunCode(messages.RunCodeRequest(**values), metadata=credentials())
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert [field] == [violation.field for violation in _typed(failed.value).violations]


def _typed(error: grpc.aio.AioRpcError) -> Any:
    return from_rpc_error(error, service="sandbox_runner")
