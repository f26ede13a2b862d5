"""Bodies of requests and responses: bounded, unpacked, relayed at the reader's pace."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from turnwire.errors import InvalidArgument, MessageTooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Sequence

    from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")
_PENDING_BYTES = 64 * 1024
"""So much waits for a slow reader; then its upstream waits too."""
RawHeaders = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The caller closed the connection: nobody reads an answer."""


async def whole_body(receive: Receive, limit: int) -> bytes:
    """Returns the body of a request.

    Raises:
        MessageTooLarge: it has more bytes than `limit`.
        ClientGone: it was not sent to its end.
    """
    pieces: list[bytes] = []
    size = 0
    async with aclosing(body_pieces(receive)) as incoming:
        async for piece in incoming:
            size += len(piece)
            if size > limit:
                raise MessageTooLarge(size_bytes=size, limit_bytes=limit)
            pieces.append(piece)
    return b"".join(pieces)


async def body_pieces(receive: Receive) -> AsyncGenerator[bytes]:
    """Gives the body of a request as it comes.

    Raises:
        ClientGone: it was not sent to its end.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if message.get("body"):
            yield message["body"]
        more = message.get("more_body", False)


def unpacked(data: bytes, encoding: str, limit: int) -> bytes:
    """Returns what was compressed as `gzip`, or is as it is (`identity`, or no name).

    Raises:
        InvalidArgument: it is not of that encoding.
        MessageTooLarge: it unpacks to more bytes than `limit`.
    """
    if encoding in {"", "identity"}:
        return data
    if encoding != "gzip":
        raise InvalidArgument.one("content-encoding", f"is `gzip` or `identity`, not {encoding[:40]!r}")
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        out = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidArgument.one("content-encoding", f"says gzip, the body is none ({error})") from None
    if len(out) > limit:
        raise MessageTooLarge(size_bytes=len(out), limit_bytes=limit)
    if not unpacker.eof:
        raise InvalidArgument.one("content-encoding", "says gzip, the body ends before its end")
    return out


@asynccontextmanager
async def unless_gone(receive: Receive) -> AsyncGenerator[asyncio.Task[None]]:
    """Gives a task that ends when the caller closes the connection; to be entered when the body was read."""
    task = asyncio.create_task(_gone(receive))
    try:
        yield task
    finally:
        task.cancel()


async def answered(receive: Receive, answer: Coroutine[Any, Any, _T]) -> _T:
    """Returns what a coroutine returns; cancels it when the caller closes the connection first.

    Raises:
        ClientGone: the caller did.
    """
    working = asyncio.create_task(answer)
    async with unless_gone(receive) as gone:
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGone
            return await working
        finally:
            working.cancel()
            await asyncio.wait({working})


class Streamed:
    """A response whose body is what a generator gives.

    Pieces that wait are sent together. A slow reader holds up the generator, and one that leaves closes it. What the
    generator raises breaks the connection, so that nobody takes a cut body for a whole one.
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes], headers: Sequence[tuple[bytes, bytes]], status: int = 200
    ) -> None:
        """`headers` are raw, with names in lower case."""
        self._pieces = pieces
        self._headers = list(headers)
        self._status = status
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._ready = asyncio.Event()
        self._space = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        filling = asyncio.create_task(self._fill())
        filling.add_done_callback(lambda _: self._ready.set())
        async with unless_gone(receive) as gone:
            gone.add_done_callback(lambda _: filling.cancel())
            try:
                await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
                while not (filling.done() and not self._waiting):
                    await self._ready.wait()
                    self._ready.clear()
                    await self._flush(send)
                if gone.done():
                    return
                await filling
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                filling.cancel()
                await asyncio.wait({filling})

    async def _fill(self) -> None:
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                self._waiting.append(piece)
                self._size += len(piece)
                self._ready.set()
                while self._size > _PENDING_BYTES:
                    self._space.clear()
                    await self._space.wait()

    async def _flush(self, send: Send) -> None:
        if not self._waiting:
            return
        together = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        self._space.set()
        await send({"type": "http.response.body", "body": together, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
