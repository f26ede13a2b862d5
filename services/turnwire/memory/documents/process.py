"""A process that reads documents, as the service has it: started, asked, and ended when it is too slow or broken.

Everything here blocks and belongs in a thread; only `end` may be called from elsewhere.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import turnwire
from turnwire.memory.documents.document import Chunk, ParsedDocument, Refused
from turnwire.memory.documents.frames import SPAN, BrokenFrame, packed, received

if TYPE_CHECKING:
    from turnwire.memory.documents.document import Limits

_START_SECONDS = 30.0
_PIECE = 256 * 1024
_MODULE = "turnwire.memory.documents.worker"


class WorkerBroken(Exception):
    """The process cannot be started: a defect of the installation, and none of a document."""


class WorkerProcess:
    """One process, which reads one document at a time."""

    def __init__(self, limits: Limits, tokenizer: Path) -> None:
        """Starts it, and returns when it is ready.

        Raises:
            WorkerBroken: it does not start.
        """
        self._limits = limits
        self._ended = False
        settings = json.dumps({"limits": asdict(limits), "tokenizer": str(tokenizer)})
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            bufsize=0,
            close_fds=True,
            # Nothing of ours runs between its birth and its program: gRPC's handlers of a fork can crash it.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe, False)
        self._deadline = time.monotonic() + _START_SECONDS
        try:
            header, _ = received(self._exactly, max_body=0)
        except (EOFError, TimeoutError, BrokenFrame) as error:
            self.close()
            raise WorkerBroken(f"{_MODULE} does not start: {type(error).__name__}") from None
        if "ready" not in header:
            self.close()
            raise WorkerBroken(f"{_MODULE} does not start: {header.get('broken', '')}")
        self.walls: list[str] = header["ready"]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """False when it has ended, or has grown by the documents it has read."""
        # One that was killed may still be there for a moment.
        return not self._ended and self._process.poll() is None and self._resident() < self._limits.memory_bytes // 4

    def read(self, data: bytes, header: dict[str, Any]) -> ParsedDocument:
        """Returns a document that was read.

        Raises:
            Refused: it was not taken, or the process died of it or did not end in time; then it is not usable.
        """
        self._deadline = time.monotonic() + self._limits.seconds
        # The text may be followed by as many chunks as there can be.
        most = self._limits.text_bytes + self._limits.chunks * SPAN.size
        try:
            self._send(packed(header, len(data)))
            self._send(data)
            answer, body = received(self._exactly, max_body=most)
        except TimeoutError:
            self.end()
            raise Refused(f"reading it takes longer than {self._limits.seconds:g} s", limit="seconds") from None
        except (EOFError, BrokenPipeError):
            raise self._died() from None
        except BrokenFrame:
            self.end()
            raise Refused("reading it broke the process that did") from None
        if "refused" in answer:
            raise Refused(str(answer["refused"]), limit=str(answer["limit"]))
        try:
            return _document(answer, body)
        except (KeyError, IndexError, TypeError, ValueError):
            self.end()
            raise Refused("reading it broke the process that did") from None

    def end(self) -> None:
        """Kills it; whoever waits for its answer sees it end."""
        self._ended = True
        with suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """Kills it and closes its pipes."""
        self.end()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _died(self) -> Refused:
        self.end()
        number = -self._process.wait()
        if number == signal.SIGXCPU:
            return Refused(f"reading it takes more than {self._limits.cpu_seconds} s of processor", limit="cpu_seconds")
        return Refused(
            "the process that read it died of it",
            limit="memory_bytes" if number in {signal.SIGABRT, signal.SIGSEGV} else "",
        )

    def _resident(self) -> int:
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._requests, selectors.EVENT_WRITE)
            with suppress(BlockingIOError):
                view = view[os.write(self._requests, view[:_PIECE]) :]

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._answers, selectors.EVENT_READ)
            with suppress(BlockingIOError):
                piece = os.read(self._answers, min(_PIECE, size - len(data)))
                if not piece:
                    raise EOFError
                data += piece
        return bytes(data)

    def _wait(self, pipe: int, event: int) -> None:
        with selectors.PollSelector() as selector:
            selector.register(pipe, event)
            left = self._deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError


def _document(answer: dict[str, Any], body: bytes) -> ParsedDocument:
    """Returns the document that an answer is; whoever sent it may have been overrun, so nothing is believed."""
    size = answer["text_bytes"]
    headings = answer["headings"]
    encoded = body[:size]
    text = encoded.decode()
    if not all(isinstance(heading, str) for heading in headings):
        raise TypeError
    chunks: list[Chunk] = []
    for start, end, tokens, page, heading in SPAN.iter_unpack(body[size:]):
        if not start < end <= size:
            raise ValueError
        # A chunk of whole characters, or it was cut by nobody who could count.
        chunks.append(Chunk(encoded[start:end].decode(), page, headings[heading], start, end, tokens))
    return ParsedDocument(str(answer["mime_type"]), str(answer["title"]), text, chunks)


def _environment() -> dict[str, str]:
    """Returns an environment without secrets: what Python needs to find the package, and no more."""
    package = str(Path(turnwire.__file__).parents[1])
    paths = [package, *(path for path in sys.path if path and path != package)]
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        # Threads and arenas take address space, of which there is little.
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }
