"""A started sandbox, seen from the runner: what is sent in, what comes out, and the limits that the host holds."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import signal
import struct
import time
from typing import TYPE_CHECKING, Any, Literal

import structlog

from turnwire.sandbox_runner import processes
from turnwire.sandbox_runner.engines.port import EngineUnusable
from turnwire.sandbox_runner.interior import frames, workspace
from turnwire.sandbox_runner.pieces import FilePiece, Finished, LeftOut, Notice, Removed, Text
from turnwire.sandbox_runner.spawning import Spawned, spawn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from turnwire.sandbox_runner.engines.port import Limits, Place
    from turnwire.sandbox_runner.pieces import Ending, Piece, Returned

_log = structlog.get_logger(__name__)

_START_SECONDS = 20.0
_KILL_SECONDS = 2.0
"""A sandbox that does not end what runs in so long is ended itself."""
_LOOK_SECONDS = 0.1
_KEPT_ERRORS = 4096
_SLACK = 1024 * 1024
"""What a run may send beyond its limits before it is taken for broken: names and notes."""


class Broken(Exception):
    """The sandbox has ended, or what it sends is nothing that we know."""


class Cage:
    """One started sandbox. Whoever starts it closes it."""

    def __init__(self, place: Place, limits: Limits) -> None:
        """Use `start`."""
        self._place = place
        self._limits = limits
        self._process: Spawned | None = None
        self._frames: asyncio.Queue[tuple[bytes, dict[str, Any], bytes] | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._errors = b""
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self._allowed = _SLACK
        """How much may still come in: what is not yet read by the caller is kept."""
        self.busy = False
        """True while it imports ahead: it answers nothing then."""
        self.uid = -1
        self.cells = 0
        self._pings = 0

    @property
    def alive(self) -> bool:
        """False when it has ended and must be replaced."""
        return not self._closed and self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The host's number of the process that was started."""
        assert self._process is not None
        return self._process.pid

    @classmethod
    async def start(cls, place: Place, limits: Limits) -> Cage:
        """Starts a sandbox and returns when it can run code.

        Raises:
            EngineUnusable: it did not come up; the text has its last words.
        """
        cage = cls(place, limits)
        try:
            cage._process = process = await spawn(place.command, place.environment)
            cage._tasks = [
                asyncio.create_task(cage._read(process.stdout)),
                asyncio.create_task(cage._keep_errors(process.stderr)),
            ]
            async with asyncio.timeout(_START_SECONDS):
                kind, values, _ = await cage._next()
            if kind != frames.READY:
                raise Broken("it did not say that it is ready")
            cage.uid = int(values.get("uid", -1))
        except (Broken, TimeoutError, OSError) as error:
            if len(cage._tasks) == 2:
                # It says why on its way out.
                await asyncio.wait(cage._tasks[1:], timeout=_KILL_SECONDS)
            await cage.close()
            words = cage.last_words() or str(error) or "it did not come up in time"
            code = cage._process.returncode if cage._process is not None else None
            raise EngineUnusable(f"{words} (exit code {code})") from None
        except BaseException:
            await cage.close()
            raise
        return cage

    def last_words(self) -> str:
        """Returns the last line of what was written to standard error beside code."""
        lines = self._errors.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    async def answers(self) -> bool:
        """True when it is there to run code: one that something outside has ended may not be known to be yet."""
        if self._ending is not None:
            # Of a run whose caller has gone.
            await self._ending
        if not self.alive:
            return False
        self._pings += 1
        self._allowed = _SLACK
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await self._send(frames.message(frames.PING, {"ping": self._pings}))
                # Answers that nobody has waited for come first: to a piece of a file whose caller has gone.
                while (await self._next())[1].get("ping") != self._pings:
                    pass
        except (Broken, TimeoutError):
            return False
        return True

    async def preload(self) -> None:
        """Imports what interpreters are to be born with; returns when it is done.

        Raises:
            Broken: the sandbox has ended.
        """
        self.busy = True
        try:
            await self._send(frames.message(frames.PRELOAD, {}))
            await self._next()
        finally:
            self.busy = False

    async def write(self, path: str, offset: int, data: bytes, *, last: bool) -> str:
        """Writes a piece of a file; returns what is wrong with it, or nothing.

        Raises:
            Broken: the sandbox has ended.
        """
        await self._send(frames.message(frames.WRITE, {"path": path, "offset": offset, "last": last}, data))
        _, values, _ = await self._next()
        return str(values.get("problem", ""))

    async def run(self, code: str, call_id: str, seconds: float, returned: Returned) -> AsyncGenerator[Piece]:
        """Runs code; the last piece is `Finished`. A run that its reader leaves is ended.

        Whether it `answers` is asked before.
        """
        self.cells += 1
        values = {
            "call_id": call_id,
            "cell": self.cells,
            "output_bytes": returned.output_bytes,
            "file_bytes": returned.file_bytes,
            "file_count": returned.file_count,
        }
        self._allowed = 2 * returned.output_bytes + returned.file_bytes + 4 * _SLACK
        run = _Run(self, seconds, returned)
        try:
            await self._send(frames.message(frames.RUN, values, code.encode("utf-8", "replace")))
            async with contextlib.aclosing(run.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        except Broken as error:
            run.ended = True
            await self.close()
            yield run.broken(self.last_words() or str(error))
        finally:
            if not run.ended:
                self._ending = asyncio.create_task(self._end_run())
                await asyncio.shield(self._ending)

    async def _end_run(self) -> None:
        """Ends what runs, when nobody waits for it any more."""
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await self._send(frames.message(frames.KILL, {}))
                while (await self._next())[0] != frames.FINISHED:
                    pass
        except (Broken, TimeoutError):
            await self.close()
        self._ending = None

    async def close(self) -> None:
        """Ends it and everything in it, and removes its files."""
        if self._closed:
            return
        self._closed = True
        if self._process is not None:
            await self._end(self._process)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._place.release)

    async def _end(self, process: Spawned) -> None:
        if process.returncode is None:
            if self._place.private_files:
                # With the first process of a namespace all others end. The signal that bubblewrap asks for at its own
                # end does not reach that first process on every kernel.
                await asyncio.to_thread(processes.kill_children, process.pid)
            else:
                process.signal(signal.SIGTERM)
        if not await _within(process.wait()):
            process.signal(signal.SIGKILL)
            if not await _within(process.wait()):
                _log.error("sandbox_does_not_end", pid=process.pid)
        # What is inside sees their end, whatever has become of the outer process.
        process.close()

    async def _send(self, data: bytes) -> None:
        assert self._process is not None
        try:
            await self._process.send(data)
        except ConnectionError:
            raise Broken("the sandbox has ended") from None

    async def _next(self) -> tuple[bytes, dict[str, Any], bytes]:
        found = await self._frames.get()
        if found is None:
            self._frames.put_nowait(None)
            raise Broken("the sandbox has ended")
        return found

    async def _read(self, stream: asyncio.StreamReader) -> None:
        """Takes what comes at any time, so that a slow caller never keeps a sandbox from being ended."""
        try:
            while True:
                kind, length = frames.HEAD.unpack(await stream.readexactly(frames.HEAD.size))
                if length > frames.PIECE + _SLACK:
                    raise frames.Broken("too long")
                body = await stream.readexactly(length)
                self._allowed -= length + 16
                if self._allowed < 0:
                    raise frames.Broken("more than it may send")
                if kind in (frames.STDOUT, frames.STDERR):
                    self._frames.put_nowait((kind, {}, body))
                else:
                    values, rest = frames.opened(body)
                    self._frames.put_nowait((kind, values, rest))
        except (asyncio.IncompleteReadError, frames.Broken, ConnectionError, struct.error):
            pass
        finally:
            self._frames.put_nowait(None)

    async def _keep_errors(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(4096):
            self._errors = (self._errors + data)[-_KEPT_ERRORS:]


class _Run:
    """One run of code in a cage, with the limits that the host holds."""

    def __init__(self, cage: Cage, seconds: float, returned: Returned) -> None:
        self._cage = cage
        self._deadline = time.monotonic() + seconds
        self._returned = returned
        self._seconds = seconds
        self._decoders = {
            kind: codecs.getincrementaldecoder("utf-8")("replace") for kind in (frames.STDOUT, frames.STDERR)
        }
        self._paths: set[str] = set()
        self.ended = False
        self._killed: Ending | None = None

    async def pieces(self) -> AsyncGenerator[Piece]:
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                kind, values, body = await self._cage._next()
                if kind == frames.FINISHED:
                    break
                for piece in self._read(kind, values, body):
                    yield piece
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        for kind, decoder in self._decoders.items():
            if text := decoder.decode(b"", final=True):
                yield Text(_stream(kind), text)
        finished = self._finished(values)
        self.ended = True
        self._cage._allowed = _SLACK
        if finished.ending == "full":
            await self._cage.close()
        else:
            try:
                left = await asyncio.to_thread(self._clean)
            except TimeoutError:
                left = True
                await self._cage.close()
            if left:
                yield Notice("Processes that the code had left running were ended.")
        yield finished

    def _read(self, kind: bytes, values: dict[str, Any], body: bytes) -> list[Piece]:
        match kind:
            case frames.STDOUT | frames.STDERR:
                text = self._decoders[kind].decode(body)
                return [Text(_stream(kind), text)] if text else []
            case frames.FILE:
                return [self._file(values, body)]
            case frames.REMOVED | frames.LEFT_OUT:
                path = str(values.get("path", ""))
                piece = Removed(path) if kind == frames.REMOVED else LeftOut(path)
                return [piece] if workspace.can_travel(path) else []
            case frames.NOTE:
                return [Notice(text) for text in _notices(values)]
            case _:
                raise Broken(f"it sent {kind!r}")

    def _file(self, values: dict[str, Any], body: bytes) -> FilePiece:
        """What comes from inside is the code's own: a path is checked here, whatever was checked there."""
        path, offset = values.get("path"), values.get("offset")
        if not isinstance(path, str) or not isinstance(offset, int) or not workspace.can_travel(path) or offset < 0:
            raise Broken("it sent a file without a name")
        self._paths.add(path)
        if len(self._paths) > self._returned.file_count:
            raise Broken("it sent more files than it may")
        return FilePiece(path, offset, body, last=values.get("last") is True)

    def _finished(self, values: dict[str, Any]) -> Finished:
        error, value = _plain(values.get("error", ""))[:2000], _plain(values.get("value", ""))
        if self._killed is not None:
            return self.broken("")
        match values.get("ended"):
            case "finished":
                return Finished("raised" if error else "completed", value, error)
            case "full":
                return Finished("full", error=f"The files of the sandbox took more room than they may: {error}.")
            case _:
                code = values.get("code")
                return Finished("died", error=f"The interpreter ended while the code ran (exit code {code}).")

    def broken(self, words: str) -> Finished:
        """Returns the end of a run that was ended, for its limit where there was one."""
        if self._killed is None:
            return Finished("died", error=f"The sandbox ended while the code ran: {_plain(words)}.")
        limits = self._cage._limits
        return Finished(self._killed, error=_LIMIT_WORDS[self._killed].format(run=self, limits=limits))

    @property
    def seconds(self) -> float:
        """How long it may run."""
        return self._seconds

    async def _watch(self) -> None:
        """Ends the run when it takes more than it may."""
        cage = self._cage
        limits = cage._limits
        began: float | None = None
        gone = 0.0
        last = 0.0
        while self._killed is None:
            left = self._deadline - time.monotonic()
            await asyncio.sleep(min(max(left, 0.0), _LOOK_SECONDS))
            used = await asyncio.to_thread(self._usage)
            # The time of processes that have ended is kept: the sum only ever falls when one ends.
            gone += max(last - used.cpu_seconds, 0.0)
            last = used.cpu_seconds
            began = used.cpu_seconds if began is None else began
            if time.monotonic() >= self._deadline:
                self._killed = "time"
            elif used.cpu_seconds + gone - began > limits.cpu_seconds:
                self._killed = "cpu"
            elif used.memory_bytes > limits.memory_bytes:
                self._killed = "memory"
            elif used.unlinked_bytes > limits.workspace_bytes:
                self._killed = "full"
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await cage._send(frames.message(frames.KILL, {}))
                await asyncio.sleep(_KILL_SECONDS)
        except TimeoutError:
            pass
        except Broken:
            return
        # It has not ended what runs: all of it goes.
        await asyncio.shield(cage.close())

    def _usage(self) -> processes.Usage:
        cage = self._cage
        private = cage._place.private_files
        inside = processes.children(cage.pid)
        shared = processes.resident(inside[0]) if inside else 0
        return processes.usage(cage.pid, shared_bytes=shared, unlinked=not private)

    def _clean(self) -> bool:
        """Ends what the code has left running; the interpreter is stopped meanwhile, and all else with it."""
        root = self._cage.pid
        inside = processes.children(root)
        if not inside:
            return False
        supervisor = inside[0]
        own = processes.children(supervisor)
        # The interpreter is the first that was started; what has lost its parent came to be one later.
        keep = {supervisor, *own[:1]}
        return processes.end(keep, root)


_LIMIT_WORDS = {
    "time": "The code ran longer than {run.seconds:g} s and was ended.",
    "cpu": "The code used more than {limits.cpu_seconds:g} s of processor time and was ended.",
    "memory": "The processes of the code used more than {limits.memory_bytes} bytes of memory and were ended.",
    "full": "The files of the sandbox took more than {limits.workspace_bytes} bytes.",
}


async def _within(waiting: Coroutine[Any, Any, None]) -> bool:
    """True when it came to its end in time."""
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            await waiting
    except TimeoutError:
        return False
    return True


def _stream(kind: bytes) -> Literal["stdout", "stderr"]:
    return "stdout" if kind == frames.STDOUT else "stderr"


def _notices(values: dict[str, Any]) -> list[str]:
    found: list[str] = []
    truncated, left_out, odd = values.get("truncated"), values.get("left_out"), values.get("odd")
    if isinstance(truncated, int):
        found.append(f"The output is cut here: a run may write {truncated} bytes, the rest was dropped.")
    if isinstance(left_out, list) and left_out:
        names = ", ".join(json.dumps(str(name)[:200]) for name in left_out[:20])  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - made text at once
        count = values.get("left_out_count")
        found.append(f"{count} changed files are not given back, for their size or their number: {names}.")
    if isinstance(odd, int) and odd:
        found.append(f"{odd} entries of the workspace are no plain files with plain names; they are not given back.")
    return found


def _plain(text: object) -> str:
    """Returns a text that can travel: what code calls text may hold halves of characters."""
    return str(text).encode("utf-8", "replace").decode()
