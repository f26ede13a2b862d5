"""The first process of a sandbox: it starts interpreters, passes on what they write, and reads the files they leave.

It lives behind the same walls as the code. What it does for the runner is comfort, not safety: the runner believes no
more of what comes out than it would believe of the code.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import selectors
import signal
import sys
import time
from typing import Any, NoReturn

if not __package__:
    # A script of its own, in the copy of this folder that the runner made: nothing of ours is installed there.
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/turnwire/", 1)[0])

from turnwire.sandbox_runner.interior import confinement, frames, interpreter, workspace

_LOOK_SECONDS = 0.1
"""How often the space that is used is measured while code runs."""
_END_SECONDS = 0.2
_MOST_RESULT = 1024 * 1024


class Child:
    """A started interpreter and the pipes to it."""

    def __init__(self) -> None:
        """Starts one."""
        stdout, self.stdout_end = os.pipe()
        stderr, self.stderr_end = os.pipe()
        results, self.results_end = os.pipe()
        self.commands_end, commands = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            self._live()
        for own in (self.stdout_end, self.stderr_end, self.results_end, self.commands_end):
            os.close(own)
        self.ended = os.pidfd_open(self.process)
        self.stdout, self.stderr, self.results, self.commands = stdout, stderr, results, commands
        for pipe in (stdout, stderr, results, commands):
            os.set_blocking(pipe, False)
        self.waiting = bytearray()
        """What is still to be written to it."""
        self.result = bytearray()

    def _live(self) -> None:
        """In the new process."""
        try:
            os.setsid()
            confinement.part()
            os.dup2(self.stdout_end, 1)
            os.dup2(self.stderr_end, 2)
            nothing = os.open("/dev/null", os.O_RDONLY)
            os.dup2(nothing, 0)
            # Above what `subprocess` hands on by number, and closed in all that is started.
            commands = fcntl.fcntl(self.commands_end, fcntl.F_DUPFD_CLOEXEC, 10)
            results = fcntl.fcntl(self.results_end, fcntl.F_DUPFD_CLOEXEC, 10)
            low, high = sorted((commands, results))
            os.closerange(3, low)
            os.closerange(low + 1, high)
            os.closerange(high + 1, os.sysconf("SC_OPEN_MAX"))
            interpreter.serve(commands, results)
        finally:
            os._exit(0)

    def close(self) -> None:
        """Ends it and all it has started, and waits for their end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        for pipe in (self.stdout, self.stderr, self.results, self.commands, self.ended):
            os.close(pipe)


class Supervisor:
    """Serves the runner through two pipes until the first one ends."""

    def __init__(self, walls: confinement.Confinement, commands: int, answers: int) -> None:
        """Starts the first interpreter."""
        self._walls = walls
        self._commands = commands
        self._answers = answers
        self._selector = selectors.DefaultSelector()
        self._incoming = bytearray()
        self._running: dict[str, Any] | None = None
        self._left = 0
        self._looked = 0.0
        self._survey = workspace.survey(walls.workspace, walls.workspace_files)
        os.set_blocking(commands, False)
        self._selector.register(commands, selectors.EVENT_READ, "commands")
        self._child = self._start()

    def serve(self) -> None:
        """Does what the runner asks for until it goes."""
        self._answer(frames.READY, {"uid": os.getuid()})
        while True:
            timeout = _LOOK_SECONDS if self._running is not None else None
            child = self._child
            for key, _ in self._selector.select(timeout):
                match key.data:
                    case "commands":
                        if not self._take():
                            return
                    case "stdout":
                        self._pass(self._child.stdout, frames.STDOUT)
                    case "stderr":
                        self._pass(self._child.stderr, frames.STDERR)
                    case "results":
                        self._collect()
                    case "write":
                        self._feed()
                    case _:
                        self._died()
                if child is not self._child:
                    break  # the events that are left are those of an interpreter that is gone
            self._reap()
            self._measure()

    def _reap(self) -> None:
        """Buries those that have lost their parent; the dead count against the limit of processes."""
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if dead.si_pid == self._child.process:
                    return  # its own event tells
                os.waitpid(dead.si_pid, 0)

    def _start(self) -> Child:
        child = Child()
        for pipe, name in (
            (child.stdout, "stdout"),
            (child.stderr, "stderr"),
            (child.results, "results"),
            (child.ended, "ended"),
        ):
            self._selector.register(pipe, selectors.EVENT_READ, name)
        return child

    def _renew(self) -> None:
        """Ends the interpreter and all that runs, and starts another."""
        child = self._child
        for pipe in (child.stdout, child.stderr, child.results, child.ended, child.commands):
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)
        child.close()
        self._child = self._start()

    def _take(self) -> bool:
        """Reads commands; False at the end of the pipe."""
        data = _some(self._commands)
        if data is None:
            return True
        if not data:
            return False
        self._incoming += data
        while len(self._incoming) >= frames.HEAD.size:
            kind, length = frames.HEAD.unpack_from(self._incoming)
            end = frames.HEAD.size + length
            if len(self._incoming) < end:
                break
            body = bytes(self._incoming[frames.HEAD.size : end])
            del self._incoming[:end]
            self._do(kind, body)
        return True

    def _do(self, kind: bytes, body: bytes) -> None:
        values, rest = frames.opened(body)
        match kind:
            case frames.RUN:
                self._running = values
                self._left = values["output_bytes"]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child.process, signal.SIGCONT)
                self._child.waiting += frames.message(frames.RUN, values, rest)
                self._selector.register(self._child.commands, selectors.EVENT_WRITE, "write")
            case frames.KILL:
                if self._running is not None:
                    self._drain()
                    self._renew()
                    self._finish({"ended": "killed"})
            case frames.PRELOAD:
                self._preload()
            case frames.PING:
                self._answer(frames.READY, {"ping": values["ping"]})
            case frames.WRITE:
                self._write(values, rest)
            case _:
                raise frames.Broken(repr(kind))

    def _feed(self) -> None:
        child = self._child
        try:
            del child.waiting[: os.write(child.commands, child.waiting)]
        except BlockingIOError:
            return
        except BrokenPipeError:
            child.waiting.clear()
        if not child.waiting:
            self._selector.unregister(child.commands)

    def _pass(self, pipe: int, kind: bytes) -> bool:
        """Hands on some output; False when there is none now."""
        data = _some(pipe)
        if not data:
            if data is not None:
                # The code has closed it.
                with contextlib.suppress(KeyError):
                    self._selector.unregister(pipe)
            return False
        if self._running is None:
            return True
        if self._left > 0:
            frames.write(self._answers, frames.frame(kind, data[: self._left]))
            if len(data) > self._left:
                self._answer(frames.NOTE, {"truncated": self._running["output_bytes"]})
        self._left -= len(data)
        return True

    def _drain(self) -> None:
        for pipe, kind in ((self._child.stdout, frames.STDOUT), (self._child.stderr, frames.STDERR)):
            # What is in a pipe fits in it: a process that goes on writing is not waited for.
            for _ in range(64):
                if not self._pass(pipe, kind):
                    break

    def _collect(self) -> None:
        data = _some(self._child.results)
        if data is None:
            return
        self._child.result += data
        if not data or len(self._child.result) > _MOST_RESULT:
            # At the end of a process its pipes close first, then its exit code is known.
            select.select([self._child.ended], [], [], _END_SECONDS)
            self._died()
            return
        while len(self._child.result) >= frames.HEAD.size:
            kind, length = frames.HEAD.unpack_from(self._child.result)
            end = frames.HEAD.size + length
            if length > _MOST_RESULT:
                self._died()
                return
            if len(self._child.result) < end:
                return
            body = bytes(self._child.result[frames.HEAD.size : end])
            del self._child.result[:end]
            if kind == frames.FINISHED and self._running is not None:
                try:
                    outcome = interpreter.decoded(body)
                except frames.Broken:
                    self._died()
                    return
                # Nothing runs between two runs, and nothing changes while files are read.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(-1, signal.SIGSTOP)
                self._drain()
                self._finish(outcome | {"ended": "finished"})

    def _died(self) -> None:
        """The interpreter has ended, by itself or by a limit, or its pipe holds garbage."""
        status = 0
        with contextlib.suppress(ChildProcessError):
            ended, status = os.waitpid(self._child.process, os.WNOHANG)
            status = status if ended else 0
        self._drain()
        self._renew()
        if self._running is not None:
            self._finish({"ended": "died", "code": os.waitstatus_to_exitcode(status)})

    def _measure(self) -> None:
        """Ends the run, and the sandbox with it, when its files take more than they may."""
        if self._running is None:
            return
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        too_much = self._too_much()
        # A tree that takes long to measure is measured less often.
        self._looked = max(now, time.monotonic() + 4 * (time.monotonic() - now))
        if too_much:
            self._give_up(too_much)

    def _give_up(self, why: str) -> NoReturn:
        self._child.close()
        self._answer(frames.FINISHED, {"ended": "full", "value": "", "error": why})
        os._exit(3)

    def _too_much(self) -> str:
        walls = self._walls
        used = files = 0
        if walls.own_files:
            # Their size is bounded by the kernel; the number of files in them is not.
            for folder in (walls.workspace, *walls.scratch):
                place = os.statvfs(folder)
                files += place.f_files - place.f_ffree
        else:
            for folder in (walls.workspace, *walls.scratch):
                found = workspace.survey(folder, walls.workspace_files)
                used += found.size
                files += found.count
        if files > walls.workspace_files:
            return f"more than {walls.workspace_files} files"
        if used > walls.workspace_bytes:
            return f"more than {walls.workspace_bytes} bytes of files"
        return ""

    def _finish(self, outcome: dict[str, Any]) -> None:
        assert self._running is not None
        limits, self._running = self._running, None
        if too_much := self._too_much():
            self._give_up(too_much)
        self._send_files(limits)
        self._answer(frames.FINISHED, {"value": "", "error": ""} | outcome)

    def _send_files(self, limits: dict[str, Any]) -> None:
        before, self._survey = self._survey, workspace.survey(self._walls.workspace, self._walls.workspace_files)
        for path in before.files.keys() - self._survey.files.keys():
            self._answer(frames.REMOVED, {"path": path})
        count = size = 0
        left_out: list[str] = []
        for path, stamp in sorted(self._survey.files.items()):
            if before.files.get(path) == stamp:
                continue
            if count >= limits["file_count"] or stamp.size > limits["file_bytes"] - size:
                left_out.append(path)
                self._answer(frames.LEFT_OUT, {"path": path})
                continue
            count += 1
            size += stamp.size
            for offset, data in workspace.pieces(self._walls.workspace, path, stamp.size, frames.PIECE):
                last = offset + len(data) >= stamp.size or not data
                frames.write(
                    self._answers,
                    frames.message(frames.FILE, {"path": path, "offset": offset, "last": last}, data),
                )
        if left_out or self._survey.odd > before.odd:
            self._answer(
                frames.NOTE, {"left_out": left_out[:20], "left_out_count": len(left_out), "odd": self._survey.odd}
            )

    def _write(self, values: dict[str, Any], data: bytes) -> None:
        problem = ""
        try:
            workspace.write(self._walls.workspace, values["path"], values["offset"], data)
        except OSError as error:
            problem = error.strerror or str(error)
        if values["last"] or problem:
            # The caller's own files do not come back to it as changed.
            self._survey = workspace.survey(self._walls.workspace, self._walls.workspace_files)
        self._answer(frames.WRITTEN, {"problem": problem})

    def _preload(self) -> None:
        """Imports what code is likely to import, so that each interpreter is born with it."""
        for name in self._walls.preload:
            with contextlib.suppress(Exception):  # then the code is told, when it imports it
                importlib.import_module(name)
        gc.collect()
        # Interpreters share these objects: they are not to be copied by counting them.
        gc.freeze()
        if self._running is None:
            self._renew()
        self._answer(frames.READY, {"preloaded": True})

    def _answer(self, kind: bytes, values: dict[str, Any]) -> None:
        frames.write(self._answers, frames.message(kind, values))


def _some(pipe: int) -> bytes | None:
    """Returns what is in a pipe; nothing at its end, None when it is empty."""
    try:
        return os.read(pipe, frames.PIECE)
    except BlockingIOError:
        return None


def main(configuration: str) -> int:
    """Serves until the runner goes; returns an exit code."""
    walls = confinement.Confinement.read(json.loads(configuration))
    # Out of the way of what is started.
    commands = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 20)
    answers = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 20)
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    confinement.adopt()
    confinement.enter(walls)
    sys.path[:] = [*sys.path, *walls.libraries]
    os.environ.clear()
    os.environ.update(walls.environment)
    sys.argv = [""]
    Supervisor(walls, commands, answers).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
