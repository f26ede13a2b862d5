"""`DocumentReader`: documents of others as text in chunks, read in processes that may die of them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from turnwire.memory.documents.document import Limits, ParsedDocument, Refused
from turnwire.memory.documents.process import WorkerBroken, WorkerProcess

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger(__name__)


class DocumentReader:
    """Reads documents, several at a time, each in a process of its own that is used again while it is well."""

    def __init__(self, *, limits: Limits | None = None, workers: int = 2, tokenizer: Path | None = None) -> None:
        """Starts no process yet.

        Args:
            limits: what a document may cost.
            workers: so many documents are read at a time; others wait.
            tokenizer: the tokenizer file that counts; without it that of the embedding model that Turnwire comes with.
        """
        self._limits = limits or Limits()
        self._tokenizer = tokenizer
        # A thread for each process: the kernel ends a process with the thread that started it.
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="documents")
        self._free = asyncio.Semaphore(workers)
        # Threads take from it and add to it.
        self._idle: deque[WorkerProcess] = deque()
        self._jobs: set[_Job] = set()
        self._closed = False

    async def read(
        self, *, data: bytes, mime_type: str, name: str, chunk_size_tokens: int, overlap_tokens: int
    ) -> ParsedDocument:
        """Returns a document as text and chunks.

        Args:
            data: the document.
            mime_type: what it was declared as; empty or `application/octet-stream` when nobody knows.
            name: what messages call it; its ending helps to tell texts apart.
            chunk_size_tokens: no chunk has more tokens, of the embedding model.
            overlap_tokens: at most so many tokens of a chunk stand in the next one too.

        Raises:
            DocumentRefused: it is no document, passes a limit or breaks what reads it.
            WeightsMissing: the tokenizer of the embedding model is not on this machine.
            Draining: the reader is closed.
            Internal: no process that reads can be started here.
        """
        # They bring gRPC, and the process that reads imports this package.
        from turnwire.errors import DocumentRefused, Draining, Internal

        shown = name or "The document"
        if len(data) > self._limits.input_bytes:
            why = f"it has {len(data)} bytes, and {self._limits.input_bytes} are read"
            raise DocumentRefused(shown, why, limit="input_bytes")
        header = {
            "mime_type": mime_type,
            "name": name[-1_000:],
            "chunk_size_tokens": chunk_size_tokens,
            "overlap_tokens": overlap_tokens,
        }
        async with self._free:
            if self._closed:
                raise Draining(service="memory")
            try:
                return await self._read(data, header)
            except Refused as refused:
                if self._closed:
                    raise Draining(service="memory") from None
                _log.info("document_refused", document=name[:200], why=refused.why, limit=refused.limit)
                raise DocumentRefused(shown, refused.why, limit=refused.limit) from None
            except (WorkerBroken, OSError) as error:
                # The next document may find a machine with room for it; the log has what the process said.
                _log.error("document_worker_not_started", error=str(error))
                raise Internal("The process that reads documents does not start.", service="memory") from None

    async def close(self) -> None:
        """Ends the processes; who waits for a document is told to come back elsewhere."""
        self._closed = True
        for job in list(self._jobs):
            job.end()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        while self._idle:
            await asyncio.to_thread(self._idle.pop().close)

    async def _read(self, data: bytes, header: dict[str, Any]) -> ParsedDocument:
        job = _Job()
        self._jobs.add(job)
        reading = asyncio.get_running_loop().run_in_executor(self._threads, self._work, job, data, header)
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The thread ends with its process, and only then is it free for the next document.
            job.end()
            await asyncio.wait([reading])
            with suppress(Exception):
                reading.result()
            raise
        finally:
            self._jobs.discard(job)

    def _work(self, job: _Job, data: bytes, header: dict[str, Any]) -> ParsedDocument:
        """Reads a document; runs in a thread."""
        worker = self._taken()
        job.belongs_to(worker)
        if self._closed:
            job.end()
        try:
            return worker.read(data, header)
        finally:
            if worker.usable and not self._closed:
                self._idle.append(worker)
            else:
                worker.close()

    def _taken(self) -> WorkerProcess:
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                break
            if worker.usable:
                return worker
            worker.close()
        worker = WorkerProcess(self._limits, self._tokenizer or _tokenizer())
        _log.info("document_worker_started", pid=worker.pid, walls=worker.walls)
        return worker


class _Job:
    """A document in work, which can be given up at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._ended = False

    def belongs_to(self, worker: WorkerProcess) -> None:
        with self._lock:
            self._worker = worker
            if self._ended:
                worker.end()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._worker is not None:
                self._worker.end()


def _tokenizer() -> Path:
    from turnwire import weights  # as above
    from turnwire.errors import WeightsMissing

    try:
        return weights.locate("minilm", "tokenizer.json")
    except weights.WeightsError:
        raise WeightsMissing("minilm", "tokenizer.json") from None
