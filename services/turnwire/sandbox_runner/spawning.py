"""A process with pipes to it, started without running anything of ours between its birth and its program.

The event loop's own way forks, and gRPC's handlers of a fork can crash the new process before it becomes its program.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Spawned:
    """A started process. Whoever starts it waits for its end, and closes it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Use `spawn`."""
        self._process = process
        self.pid = process.pid
        self._ended = asyncio.Event()
        self._watched = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._watched, self._on_end)
        self.stdout = asyncio.StreamReader()
        self.stderr = asyncio.StreamReader()
        self._stdin: asyncio.StreamWriter | None = None
        self._pipes: list[asyncio.BaseTransport] = []

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.returncode

    async def connect(self) -> None:
        """Connects the pipes to the event loop."""
        loop = asyncio.get_running_loop()
        for reader, pipe in ((self.stdout, self._process.stdout), (self.stderr, self._process.stderr)):
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_read_pipe(lambda protocol=protocol: protocol, pipe)
            self._pipes.append(transport)
        # A protocol of streams waits where a pipe is full; one that only writes has nothing to read.
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: protocol, self._process.stdin)
        self._pipes.append(transport)
        self._stdin = asyncio.StreamWriter(cast("Any", transport), protocol, None, loop)

    async def send(self, data: bytes) -> None:
        """Writes to its standard input.

        Raises:
            ConnectionError: it has closed it.
        """
        if self._stdin is None or self._stdin.is_closing():
            raise ConnectionError("the pipe is closed")
        self._stdin.write(data)
        await self._stdin.drain()

    async def wait(self) -> None:
        """Returns when it has ended."""
        await self._ended.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; nothing when it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def close(self) -> None:
        """Closes the pipes."""
        for pipe in self._pipes:
            pipe.close()
        self._pipes.clear()

    def _on_end(self) -> None:
        self._process.poll()
        asyncio.get_running_loop().remove_reader(self._watched)
        os.close(self._watched)
        self._ended.set()


async def spawn(command: Sequence[str], environment: Mapping[str, str]) -> Spawned:
    """Starts a process in a session of its own, at the root of the file system, with pipes for its three streams.

    Raises:
        OSError: it cannot be started.
    """
    process = await asyncio.to_thread(_popen, command, environment)
    spawned = Spawned(process)
    try:
        await spawned.connect()
    except BaseException:
        spawned.signal(signal.SIGKILL)
        await spawned.wait()
        spawned.close()
        raise
    return spawned


def _popen(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=environment,
        cwd="/",
        bufsize=0,
        close_fds=True,
        start_new_session=True,
    )
