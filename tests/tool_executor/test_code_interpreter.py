"""`code_interpreter` from the call to the sandbox and back: values, output, files, figures, limits."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.fakes.images_server import fake_images
from tests.tool_executor.calling import (
    CANCELLED,
    CODE,
    KEYS,
    SECRET,
    SUCCEEDED,
    TWO_TENANTS,
    Executor,
    calling,
    names,
)
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import NotFound, StoreUnavailable
from turnwire.testing.mesh import running_mesh
from turnwire.tool_executor.artifacts import Artifacts
from turnwire.tool_executor.v1 import artifact_service_pb2, tool_executor_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.mesh
TOOL = "code_interpreter"


@asynccontextmanager
async def _interpreter(**settings: Any) -> AsyncGenerator[Executor]:
    given: dict[str, Any] = {"access": SECRET, "sandbox": {"preload": []}} | settings
    async with (
        running_mesh(
            services=("sandbox_runner", "tool_executor"), providers={"tool_executor": [CODE]}, **given
        ) as mesh,
        calling(mesh) as executor,
    ):
        yield executor


async def _code(executor: Executor, code: str, call_id: str, **more: Any) -> Any:
    return await executor.run(TOOL, {"code": code}, call_id, **more)


async def test_output_comes_as_it_is_written_and_the_value_of_the_last_expression_last():
    async with _interpreter() as executor:
        first = await _code(executor, "x = 6\nprint('Grüße 🍳')\nx * 7", "call_1")
        second = await _code(executor, "x + 1", "call_2")
        silent = await _code(executor, "y = 1", "call_3")
        failed = await _code(executor, "print('before')\n1 / 0", "call_4")
        environment = await _code(executor, "import os; os.environ['TURNWIRE_CALL_ID']", "call_5")

    assert ("Grüße 🍳\n", "Grüße 🍳\n42") == (first.output, first.result.content)
    assert "7" == second.result.content
    assert "[The code wrote nothing.]" == silent.result.content
    assert error_pb2.ERROR_REASON_TOOL_FAILED == failed.reason
    assert failed.result.content.startswith("before\nTraceback")
    assert "ZeroDivisionError" in failed.result.failure.message
    assert "'call_5'" == environment.result.content


async def test_output_is_there_before_the_code_has_ended_and_for_those_who_come_later():
    async with _interpreter() as executor:
        early = executor.stream(
            TOOL, {"code": "import time\nprint('a', flush=True)\nwhile True: time.sleep(0.1)"}, "call_1"
        )
        texts: list[str] = []
        async for response in early:
            if response.HasField("output"):
                texts.append(response.output.text)
                break
        late = executor.stream(
            TOOL, {"code": "import time\nprint('a', flush=True)\nwhile True: time.sleep(0.1)"}, "call_1"
        )
        async for response in late:
            if response.HasField("output"):
                texts.append(response.output.text)
                assert 0 == response.output.offset
                break
        stopped = await executor.cancel()

    assert ["a\n", "a\n"] == texts
    assert CANCELLED == stopped.state
    assert "a\n" == stopped.result.content


async def test_figures_and_files_are_artifacts():
    code = """
import matplotlib.pyplot as plt, os
plt.plot([1, 4, 9]); plt.show()
os.makedirs("out/deep"); open("out/deep/table.csv", "w").write("a,b\\n1,2\\n"); None
"""
    async with _interpreter() as executor:
        ran = await _code(executor, code, "call_1")
        data = {each.name: await executor.download(each.artifact_id) for each in ran.result.attachments}
        listed = await executor.call("ListArtifacts", artifact_service_pb2.ListArtifactsRequest(session_id="sess_1"))

    assert ["figure-1.png", "table.csv"] == names(ran.result.attachments)
    assert {"image/png", "text/csv"} == {each.mime_type for each in ran.result.attachments}
    assert data["figure-1.png"].startswith(b"\x89PNG")
    assert b"a,b\n1,2\n" == data["table.csv"]
    assert "out/deep/table.csv" in {each.metadata["path"] for each in listed.artifacts}
    assert "[Files: " in ran.result.content


async def test_attachments_of_all_kinds_lie_in_the_working_directory_once():
    async with _interpreter() as executor:
        kept = await executor.upload(b"c,d\n" * 300_000, name="large.csv")
        attachments = [
            message_pb2.Attachment(text="Grüße", name="note.txt"),
            message_pb2.Attachment(data=b"\0\1", name="../../etc/data.bin"),
            message_pb2.Attachment(artifact_id=kept.artifact_id),
            message_pb2.Attachment(text="again", name="note.txt"),
        ]
        code = "import os\n{name: os.path.getsize(name) for name in sorted(os.listdir('.'))}"
        ran = await _code(executor, code, "call_1", attachments=attachments)
        await _code(executor, "open('note.txt', 'w').write('changed'); None", "call_2")
        # What the code has changed stays so when the same files come again.
        after = await _code(executor, "open('note.txt').read()", "call_3", attachments=attachments)

    expected = {"data.bin": 2, "large.csv": 1_200_000, "note-2.txt": 5, "note.txt": 7}
    assert repr(expected) == ran.result.content
    assert "'changed'" == after.result.content


@pytest.mark.parametrize(
    ("attachment", "reason"),
    [
        (message_pb2.Attachment(artifact_id="art_nothing"), error_pb2.ERROR_REASON_NOT_FOUND),
        (message_pb2.Attachment(url="http://127.0.0.1:9/x"), error_pb2.ERROR_REASON_DOCUMENT_REFUSED),
    ],
    ids=["artifact", "url"],
)
async def test_an_attachment_that_cannot_be_had_is_a_failure_and_nothing_runs(
    attachment: message_pb2.Attachment, reason: int
):
    async with _interpreter() as executor:
        ran = await _code(executor, "print('ran')", "call_1", attachments=[attachment])
        noted = await executor.execution()

    assert reason == ran.reason
    assert ("", False) == (ran.output, noted.HasField("dispatch_time"))


async def test_long_output_becomes_a_file_with_its_head_and_tail_in_the_content():
    code = "for n in range(20_000): print(f'Zeile {n} ä')"
    async with _interpreter() as executor:
        ran = await _code(executor, code, "call_1")
        (attachment,) = ran.result.attachments
        whole = (await executor.download(attachment.artifact_id)).decode()

    expected = "\n".join(f"Zeile {n} ä" for n in range(20_000))
    assert expected == whole
    assert expected + "\n" == ran.output
    assert ran.result.content.startswith("Zeile 0 ä\n")
    assert ran.result.content.endswith("Zeile 19999 ä")
    assert f"all of it is in the attached file {attachment.name}" in ran.result.content
    assert len(ran.result.content.encode()) < 48 * 1024


async def test_the_deadline_of_a_caller_does_not_reach_the_sandbox():
    async with _interpreter() as executor:
        stream = executor.stream(TOOL, {"code": "import time; time.sleep(1.5); 6 * 7"}, "call_1", timeout=0.7)
        with pytest.raises(grpc.RpcError) as raised:
            async for _ in stream:
                pass
        ran = await _code(executor, "import time; time.sleep(1.5); 6 * 7", "call_1")

    assert grpc.StatusCode.DEADLINE_EXCEEDED == raised.value.code()
    assert "42" == ran.result.content


async def test_code_that_takes_too_long_is_ended_and_the_next_call_is_told():
    async with _interpreter() as executor:
        await _code(executor, "x = 1", "call_1")
        limits = tool_executor_service_pb2.ExecutionLimits(total=Duration(seconds=1))
        ran = await _code(executor, "print('begun', flush=True)\nwhile True: pass", "call_2", limits=limits)
        after = await _code(executor, "'x' in dir()", "call_3")

    assert error_pb2.ERROR_REASON_DEADLINE_EXCEEDED == ran.reason
    assert "begun" in ran.result.content
    assert "False" == after.result.content.splitlines()[0]
    assert "started anew" in after.result.content


async def test_silence_after_the_first_output_has_a_limit_of_its_own():
    async with _interpreter() as executor:
        limits = tool_executor_service_pb2.ExecutionLimits(silence=Duration(nanos=300_000_000))
        ran = await _code(executor, "print('begun', flush=True)\nwhile True: pass", "call_1", limits=limits)
        after = await _code(executor, "6 * 7", "call_2")

    assert (error_pb2.ERROR_REASON_DEADLINE_EXCEEDED, "silence") == (ran.reason, ran.result.failure.metadata["limit"])
    assert "42" == after.result.content.splitlines()[0]


async def test_calls_of_one_session_wait_for_each_other_and_sessions_do_not():
    async with _interpreter(sandbox={"preload": [], "warm": 2}) as executor:
        slow = executor.stream(TOOL, {"code": "print('a', flush=True)\nwhile True: pass"}, "call_1")
        async for response in slow:
            if response.HasField("output"):
                break
        waiting = asyncio.create_task(_code(executor, "2", "call_2"))
        other = await _code(executor, "3", "call_3", session_id="sess_2")
        assert not waiting.done()
        await executor.cancel("call_1")
        second = await waiting

    assert "3" == other.result.content
    assert "2" == second.result.content.splitlines()[0]


async def test_tenants_with_one_session_id_have_sandboxes_of_their_own():
    async with (
        running_mesh(
            services=("sandbox_runner", "tool_executor"),
            providers={"tool_executor": [CODE]},
            access=TWO_TENANTS,
            sandbox={"preload": []},
        ) as mesh,
        calling(mesh, KEYS["alice"]) as alice,
        calling(mesh, KEYS["bob"]) as bob,
    ):
        made = await _code(alice, "x = 1; open('secret.txt', 'w').write('s'); None", "call_1")
        seen = await _code(bob, "import os\n('x' in dir(), os.listdir('.'))", "call_1")
        with pytest.raises(NotFound):
            await bob.download(made.result.attachments[0].artifact_id)

    assert "(False, [])" == seen.result.content


async def test_a_file_that_may_not_be_kept_is_told_and_the_code_has_run():
    async with _interpreter(artifacts={"file_bytes": 2000}) as executor:
        code = "open('a.bin', 'wb').write(b'x' * 3000); open('b.bin', 'wb').write(b'x' * 1000)"
        ran = await _code(executor, code, "call_1")
        noted = await executor.execution()

    assert ["b.bin"] == names(ran.result.attachments)
    assert '"a.bin" is not given back' in ran.result.content
    assert SUCCEEDED == noted.state


async def test_without_a_runner_the_call_fails_and_says_so():
    async with (
        running_mesh(services=("tool_executor",), providers={"tool_executor": [CODE]}) as mesh,
        calling(mesh) as executor,
    ):
        # It is asked again for half of what connecting may take.
        limits = tool_executor_service_pb2.ExecutionLimits(connect=Duration(seconds=2))
        ran = await _code(executor, "1", "call_1", limits=limits)
        noted = await executor.execution()

    assert error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE == ran.reason
    assert "sandbox_runner" in ran.result.failure.message
    assert not noted.HasField("dispatch_time")


async def test_a_new_runner_has_the_files_of_code_and_of_calls_and_not_those_that_were_removed():
    listing = "import os\nsorted(os.path.join(d, n) for d, _, names in os.walk('.') for n in names)"
    async with (
        running_mesh(
            services=("sandbox_runner", "tool_executor"),
            providers={"tool_executor": [CODE]},
            access=SECRET,
            sandbox={"preload": []},
        ) as mesh,
        calling(mesh) as executor,
    ):
        given = [
            message_pb2.Attachment(text="a,b\n1,2\n", name="table.csv"),
            message_pb2.Attachment(text="as it came", name="plain.txt"),
        ]
        make = "import os\nx = 1\nos.mkdir('sub')\nfor p in ('sub/made.txt', 'gone.txt'): open(p, 'w').write(p)"
        await _code(executor, make, "call_1", attachments=given)
        await _code(executor, "import os\nos.remove('gone.txt'); open('table.csv', 'a').write('3,4\\n')", "call_2")
        first = (await executor.execution("call_1")).workspace_snapshot
        second = (await executor.execution("call_2")).workspace_snapshot
        await mesh.stop("sandbox_runner")
        await mesh.start("sandbox_runner")
        found = await _again(executor, listing)
        read = await _code(executor, "open('table.csv').read() + open('sub/made.txt').read()", "call_4")
        lost = await _code(executor, "x", "call_5")

    assert "['./plain.txt', './sub/made.txt', './table.csv']" in found
    assert "variables and imports of earlier runs are gone; their files are there again." in found
    assert "'a,b\\n1,2\\n3,4\\nsub/made.txt'" == read.result.content
    assert "NameError" in lost.result.failure.message
    assert "" != first != second != ""


async def test_a_new_sandbox_has_no_older_version_of_a_file_that_was_not_given_back_or_not_kept():
    sandbox = {"preload": [], "workspace_files": 200, "returned_bytes": 4096}
    async with _interpreter(sandbox=sandbox, artifacts={"file_bytes": 2048}) as executor:
        given = [message_pb2.Attachment(text="x" * 3000, name="given.txt")]
        await _code(executor, "for name in ('kept', 'grown', 'huge'): open(name, 'w').write('small')", "call_1")
        change = "for name, size in (('grown', 3000), ('huge', 5000)): open(name, 'w').write('x' * size)\nsize"
        ran = await _code(executor, change, "call_2", attachments=given)
        await _code(executor, "for n in range(2000): open(f'file-{n}', 'w').close()", "call_3")
        after = await _code(executor, "import os; os.listdir('.')", "call_4")

    assert 0 == ran.reason
    assert ran.result.content.startswith("5000\n")
    assert after.result.content.startswith("['kept']")
    assert 'these could not be brought back: "given.txt", "grown", "huge".' in after.result.content


async def test_files_of_a_call_are_offered_again_to_a_store_that_is_away_once_its_code_has_run(
    monkeypatch: pytest.MonkeyPatch,
):
    keep, failures = Artifacts.keep, [StoreUnavailable("tool_executor", "the disk is full")] * 2

    async def failing(*given: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return await keep(*given, **named)

    monkeypatch.setattr(Artifacts, "keep", failing)
    async with _interpreter() as executor:
        given = [message_pb2.Attachment(text="a,b", name="table.csv")]
        ran = await _code(executor, "open('table.csv').read()", "call_1", attachments=given)

    assert ("'a,b'", []) == (ran.result.content, failures)


async def test_a_file_whose_content_is_lost_is_told_and_stands_in_the_way_of_no_code(tmp_path: Path):
    async with _interpreter(folder=tmp_path, sandbox={"preload": [], "workspace_files": 200}) as executor:
        await _code(executor, "for name in ('kept', 'lost'): open(name, 'w').write(name)", "call_1")
        await _code(executor, "for n in range(2000): open(f'file-{n}', 'w').close()", "call_2")
        [content] = (tmp_path / "data" / "artifacts").glob(f"=*/*/{hashlib.sha256(b'lost').hexdigest()}")
        content.unlink()
        after = await _code(executor, "import os; os.listdir('.')", "call_3")

    assert after.result.content.startswith("['kept']")
    assert 'these could not be brought back: "lost".' in after.result.content


async def test_a_sandbox_that_has_burst_has_the_files_of_before_at_the_next_code():
    async with _interpreter(sandbox={"preload": [], "workspace_files": 200}) as executor:
        await _code(executor, "open('small.txt', 'w').write('kept')", "call_1")
        burst = await _code(executor, "for n in range(2000): open(f'file-{n}', 'w').close()", "call_2")
        after = await _code(executor, "import os; print(os.listdir('.')); open('small.txt').read()", "call_3")

    assert "200 files" in burst.result.failure.message
    assert after.result.content.startswith("['small.txt']\n'kept'")
    assert "their files are there again" in after.result.content


async def test_a_file_of_a_private_host_is_read_where_the_operator_allows_it():
    async with fake_images() as fake:
        file = message_pb2.Attachment(url=f"http://{fake.host}/picture.png", name="picture.png")
        code = "open('picture.png', 'rb').read(4)"
        async with _interpreter(fetch={"allow_hosts": [fake.host]}) as executor:
            allowed = await _code(executor, code, "call_1", attachments=[file])
        async with _interpreter() as executor:
            refused = await _code(executor, code, "call_1", attachments=[file])

    assert "b'\\x89PNG'" == allowed.result.content
    assert error_pb2.ERROR_REASON_DOCUMENT_REFUSED == refused.reason


async def _again(executor: Executor, code: str) -> str:
    """Runs code until the runner, which has just started, is reached: each try is a call of its own."""
    number = 0
    while True:
        ran = await _code(executor, code, f"again_{number}")
        if ran.reason != error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE:
            return ran.result.content
        number += 1
