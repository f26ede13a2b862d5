"""A TCP proxy that cuts, delays and falls silent, as networks do."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Proxy:
    """Passes connections on to a server, and does to them what a test wants."""

    def __init__(self, target: str) -> None:
        """`target` is the `host:port` of the server."""
        self.lead_to(target)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flowing = {True: asyncio.Event(), False: asyncio.Event()}
        """Whether answers (True) and requests (False) are passed on."""
        self.release()
        self.delay = 0.0
        """Each piece of the answer comes so many seconds late."""
        self.refuses = False
        """New connections are closed at once."""
        self.accepted = 0
        """Connections so far."""
        self.address = ""

    def lead_to(self, target: str) -> None:
        """Leads new connections to another server."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)

    async def open(self) -> None:
        """Begins to listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        """Cuts everything and stops listening."""
        assert self._server is not None
        self._server.close()
        self.release()
        self.cut()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Resets all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    def hold(self, *, requests: bool = True, answers: bool = True) -> None:
        """Passes nothing on any more, in these directions, of old connections and new ones; nobody is told."""
        for back, held in ((True, answers), (False, requests)):
            if held:
                self._flowing[back].clear()

    def release(self) -> None:
        """Passes on what was held."""
        for flowing in self._flowing.values():
            flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuses:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        for source, sink, back in ((reader, there_writer, False), (there_reader, writer, True)):
            pump = asyncio.create_task(self._pump(source, sink, back=back))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, back: bool) -> None:
        try:
            while data := await source.read(65536):
                await self._flowing[back].wait()
                if back and self.delay:
                    await asyncio.sleep(self.delay)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(sink)
            sink.transport.abort()


@asynccontextmanager
async def proxied(target: str) -> AsyncGenerator[Proxy]:
    """Gives a proxy before a server."""
    proxy = Proxy(target)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
