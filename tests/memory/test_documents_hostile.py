"""Hostile documents are refused within their limits, and the next document is read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.memory.hostile import HOSTILE, deflated, word_document
from tests.memory.reading import pdf, pdf_with, read, reading, small_tokenizer, stream, until, worker_processes
from turnwire.common.v1 import error_pb2
from turnwire.errors import DocumentRefused, Draining
from turnwire.memory.documents import Limits

pytestmark = pytest.mark.timeout(120)

_MIB = 1024 * 1024
_SLOW = b"It takes a while to count the words of this. " * 100_000
"""Takes seconds to read."""


class _Growth:
    """How much larger than at its beginning this process was within the block."""

    def __enter__(self) -> _Growth:
        self._process = psutil.Process()
        self._start = self._most = self._process.memory_info().rss
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watching.join()

    @property
    def bytes(self) -> int:
        return self._most - self._start

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self._most = max(self._most, self._process.memory_info().rss)


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_document_is_refused_and_the_next_one_is_read(what: str, tmp_path: Path):
    hostile = HOSTILE[what]
    data = hostile.make()
    async with reading(tmp_path) as reader:
        assert ["Something to read."] == [chunk.text for chunk in (await read(reader, word_document())).chunks]
        with _Growth() as growth:
            with pytest.raises(DocumentRefused) as refused:
                await read(reader, data, hostile.mime_type, hostile.name)
        assert error_pb2.ERROR_REASON_DOCUMENT_REFUSED == refused.value.reason
        assert hostile.name == refused.value.metadata["document"]
        if hostile.limit is not None:
            assert hostile.limit == refused.value.metadata.get("limit")
        # What the document becomes is never in this process, and of the document only a piece in the pipe.
        assert growth.bytes < 48 * _MIB
        assert "still here" == (await read(reader, b"still here")).text


async def test_a_document_that_takes_too_long_is_refused_and_its_process_ends(tmp_path: Path):
    async with reading(tmp_path, limits=Limits(seconds=1.5)) as reader:
        await read(reader, b"first")
        (before,) = worker_processes()
        with pytest.raises(DocumentRefused, match=r"takes longer than 1.5 s") as refused:
            await read(reader, _SLOW * 3)
        assert "seconds" == refused.value.metadata["limit"]
        assert not before.is_running()
        assert "next" == (await read(reader, b"next")).text


async def test_a_document_that_takes_too_much_of_the_processor_is_refused(tmp_path: Path):
    async with reading(tmp_path, limits=Limits(cpu_seconds=1)) as reader:
        with pytest.raises(DocumentRefused, match="takes more than 1 s of processor") as refused:
            await read(reader, _SLOW * 4)
        assert "cpu_seconds" == refused.value.metadata["limit"]
        assert "next" == (await read(reader, b"next")).text


async def test_the_time_of_earlier_documents_is_not_counted(tmp_path: Path):
    text = b"It takes a while to count the words of this. " * 4_000
    async with reading(tmp_path, limits=Limits(cpu_seconds=1)) as reader:
        await read(reader, text)
        (worker,) = worker_processes()
        while sum(worker.cpu_times()[:2]) < 2.5:
            await read(reader, text)
        assert [worker.pid] == [each.pid for each in worker_processes()]


async def test_a_document_that_takes_too_much_memory_is_refused(tmp_path: Path):
    # Just below the library's own limit for a stream, and above what is left of the memory.
    bomb = pdf_with([stream(deflated(70 * _MIB), filters=b"/FlateDecode")])
    async with reading(tmp_path, limits=Limits(memory_bytes=220 * _MIB)) as reader:
        with pytest.raises(DocumentRefused):
            await read(reader, bomb)
        assert "next" == (await read(reader, pdf(["next"]))).text


async def test_a_process_that_is_killed_while_it_reads_costs_one_document(tmp_path: Path):
    async with reading(tmp_path) as reader:
        await read(reader, b"first")
        (worker,) = worker_processes()
        used = sum(worker.cpu_times()[:2])
        slow = asyncio.create_task(read(reader, _SLOW))
        await until(lambda: sum(worker.cpu_times()[:2]) > used + 0.1)
        worker.send_signal(signal.SIGKILL)
        with pytest.raises(DocumentRefused, match="the process that read it died of it"):
            await slow
        assert "next" == (await read(reader, b"next")).text


async def test_a_process_that_died_between_documents_costs_none(tmp_path: Path):
    async with reading(tmp_path) as reader:
        await read(reader, b"first")
        (worker,) = worker_processes()
        worker.send_signal(signal.SIGKILL)
        await until(lambda: worker.status() == psutil.STATUS_ZOMBIE)
        assert "next" == (await read(reader, b"next")).text


async def test_a_process_that_grew_is_replaced(tmp_path: Path):
    # How large a process is depends on the machine; by how much the library for a PDF makes it larger hardly does.
    async with reading(tmp_path) as reader:
        await read(reader, b"first")
        (worker,) = worker_processes()
        small = worker.memory_info().rss
        await read(reader, pdf(["second"]))
        assert [worker.pid] == [each.pid for each in worker_processes()]
        large = worker.memory_info().rss
    assert small + 4 * _MIB < large
    # A quarter of this it reaches with a PDF, and not with a text.
    async with reading(tmp_path, limits=Limits(memory_bytes=4 * (small + large) // 2)) as reader:
        await read(reader, b"first")
        (before,) = worker_processes()
        assert "second" == (await read(reader, b"second")).text
        assert [before.pid] == [worker.pid for worker in worker_processes()]
        assert "third" == (await read(reader, pdf(["third"]))).text
        assert [] == worker_processes()
        assert "next" == (await read(reader, b"next")).text


async def test_giving_up_a_document_ends_its_process_and_frees_its_place(tmp_path: Path):
    async with reading(tmp_path) as reader:
        slow = asyncio.create_task(read(reader, _SLOW))
        await until(lambda: bool(worker_processes()))
        (worker,) = worker_processes()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert not worker.is_running()
        assert "next" == (await read(reader, b"next")).text


async def test_closing_ends_every_process_and_tells_who_waits(tmp_path: Path):
    async with reading(tmp_path, workers=2) as reader:
        await read(reader, b"first")
        (worker,) = worker_processes()
        used = sum(worker.cpu_times()[:2])
        slow = asyncio.create_task(read(reader, _SLOW))
        await until(lambda: sum(worker.cpu_times()[:2]) > used + 0.1)
        await reader.close()
        with pytest.raises(Draining):
            await slow
        assert [] == worker_processes()
        with pytest.raises(Draining):
            await read(reader, b"next")


async def test_the_loop_is_free_while_documents_are_read(tmp_path: Path):
    async with reading(tmp_path) as reader:
        await read(reader, b"first")
        slow = asyncio.create_task(read(reader, _SLOW[: len(_SLOW) // 4]))
        rounds = 0
        while not slow.done():
            await asyncio.sleep(0.005)
            rounds += 1
        await slow
        assert rounds > 50


async def test_the_process_has_no_secrets_and_its_own_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TURNWIRE_TOKEN", "a-secret-of-the-service")
    async with reading(tmp_path) as reader:
        await read(reader, b"first")
        (worker,) = worker_processes()
        assert "a-secret-of-the-service" not in Path(f"/proc/{worker.pid}/environ").read_text()
        assert worker.pid == os.getsid(worker.pid)
        soft = worker.rlimit(psutil.RLIMIT_FSIZE)
        assert (0, 0) == soft


_PAYLOADS = """
import json, os, socket, subprocess, sys
from turnwire.memory.documents import confinement
from turnwire.memory.documents.document import Limits

def tried():
    payloads = {
        "a socket": lambda: socket.socket().close(),
        "a file of the system": lambda: open("/etc/passwd").read(),
        "a secret beside": lambda: open(sys.argv[1]).read(),
        "a folder": lambda: os.listdir("/etc"),
        "the environment of the parent": lambda: open(f"/proc/{os.getppid()}/environ").read(),
        "another program": lambda: subprocess.run(["true"], check=True),
        "another process": fork,
        "a signal": lambda: os.kill(os.getppid(), 0),
        "much memory": lambda: bytes(2 << 30),  # zeros that nobody has to write
    }
    worked = []
    for name, payload in payloads.items():
        try:
            payload()
            worked.append(name)
        except (OSError, MemoryError):
            pass
    return worked

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

before = tried()
confinement.limit(Limits())
walls = confinement.confine()
print(json.dumps({"before": before, "walls": walls, "after": tried()}))
"""


def test_what_overruns_a_reader_reaches_nothing(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("key")
    ended = subprocess.run(
        [sys.executable, "-c", _PAYLOADS, str(secret)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "" == ended.stderr
    told = json.loads(ended.stdout)
    assert ["limits", "landlock", "seccomp"] == told["walls"]
    assert 9 == len(told["before"])
    assert [] == told["after"]


_READS_AND_WAITS = """
import asyncio, sys
from pathlib import Path
from turnwire.memory.documents import DocumentReader

async def main():
    reader = DocumentReader(tokenizer=Path(sys.argv[1]))
    await reader.read(data=b"first", mime_type="", name="", chunk_size_tokens=64, overlap_tokens=0)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.faults
@pytest.mark.everyday
async def test_a_process_ends_with_the_service_that_was_killed(tmp_path: Path):
    service = subprocess.Popen(
        [sys.executable, "-c", _READS_AND_WAITS, str(small_tokenizer(tmp_path / "tokenizer.json"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
    )
    assert service.stdout is not None
    # Above it stands a line of the log.
    lines = [await asyncio.to_thread(service.stdout.readline) for _ in range(2)]
    assert b"ready\n" == lines[-1]
    (worker,) = psutil.Process(service.pid).children()
    try:
        # Stopped, it cannot see for itself that its input has ended.
        worker.send_signal(signal.SIGSTOP)
        await until(lambda: worker.status() == psutil.STATUS_STOPPED)
        service.kill()
        service.wait()
        await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    finally:
        service.kill()
        service.wait()
        service.stdout.close()
        if worker.is_running():
            worker.kill()
