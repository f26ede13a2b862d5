"""The command as a user runs it: a process with pipes, or one in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

SOURCE = Path(__file__).resolve().parents[2] / "services"
_SECONDS = 25.0
_LISTEN = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("on", flush=True)
sys.stdin.read()
"""


class Done(NamedTuple):
    """How a command ended, and what it has written."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns an environment without settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TURNWIRE_", "HF_"))}
    path = os.pathsep.join(part for part in (str(SOURCE), os.environ.get("PYTHONPATH")) if part)
    return {**kept, "PYTHONPATH": path, "TERM": "dumb", "HF_HUB_OFFLINE": "1", **(given or {})}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "turnwire.cli.main", *arguments]


def turnwire(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path, stdin: bytes = b"") -> Done:
    """Runs a command to its end, with pipes."""
    ended = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(env),
        timeout=_SECONDS,
        check=False,
    )
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    return Done(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


@contextmanager
def listener(port: int) -> Generator[int]:
    """Gives the id of another process, which listens on a port."""
    words = [sys.executable, "-c", _LISTEN, str(port)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.communicate()


class Terminal:
    """A command in a terminal of its own; Ctrl-C is typed. Its standard output may be `piped` elsewhere."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path, piped: BinaryIO | None = None
    ) -> None:
        self._screen, keyboard = pty.openpty()
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=keyboard,
            stdout=piped or keyboard,
            stderr=keyboard,
            cwd=cwd,
            env=environment(env),
            preexec_fn=_take_terminal,
        )
        os.close(keyboard)
        self.shown = ""
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._screen)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def until(self, text: str) -> str:
        """Waits until a text is shown, after what was waited for before; returns what stood before it."""
        deadline = time.monotonic() + _SECONDS
        while text not in self.shown[self._position :]:
            assert self._read(deadline), f"{text!r} was not shown:\n{self.shown}"
        start = self._position
        found = self.shown.index(text, start)
        self._position = found + len(text)
        return self.shown[start:found]

    def ends_within(self, seconds: float) -> bool:
        """True when the command ends in that time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def code(self) -> int:
        """Reads to the end and returns the exit code."""
        deadline = time.monotonic() + _SECONDS
        while self._read(deadline):
            pass
        code = self.process.wait(_SECONDS)
        assert "Traceback" not in self.shown, self.shown
        return code

    def _read(self, deadline: float) -> bool:
        """Reads what there is; False at the end of it, or when it takes too long."""
        ready, _, _ = select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            read = os.read(self._screen, 65536)
        except OSError:  # how Linux says that the other side of a terminal is closed
            return False
        self.shown += read.decode(errors="replace").replace("\r\n", "\n")
        return bool(read)


def _take_terminal() -> None:
    """In the child: a session of its own, whose terminal this is; only then does Ctrl-C reach it."""
    os.setsid()
    # Whoever runs the tests in the background has it ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
