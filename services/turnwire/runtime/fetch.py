"""The one guarded fetch of a URL: what somebody else named is read from the public internet, or refused.

A URL in a document or an attachment is chosen by a caller or a model. Fetched as it stands it would reach what only
this machine reaches: its own services, the network around it, its cloud's metadata. So the name is resolved here, each
address is checked, and the connection goes to a checked address and to no other; every redirect goes through the same.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import zlib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from yarl import URL

from turnwire.errors import DocumentRefused
from turnwire.runtime.addresses import address_in, is_public

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Collection, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was behind a URL."""

    data: bytes
    mime_type: str
    """As the server calls it, with its parameters; empty when it does not say."""
    final_url: str
    """Where the redirects ended."""


class Resolve(Protocol):
    """Finds the addresses of a name; raises OSError where there are none."""

    def __call__(self, host: str, port: int, /) -> Awaitable[Sequence[str]]: ...


class GuardedFetcher:
    """Fetches URLs that others chose, and reaches nothing but the public internet."""

    def __init__(self, *, allow_hosts: Collection[str] = (), resolve: Resolve | None = None) -> None:
        """Opens nothing yet.

        Args:
            allow_hosts: `host` or `host:port` (as they stand in URLs, an IPv6 address without brackets) that may lie
                anywhere: an operator's own servers.
            resolve: finds addresses in place of the system's resolver.
        """
        self._allowed = frozenset(host.lower() for host in allow_hosts)
        self._resolve = resolve or _system

    async def fetch(self, url: str, *, max_bytes: int, seconds: float) -> Fetched:
        """Returns what is behind a URL: at most `max_bytes` of it, within `seconds` for everything together.

        Raises:
            DocumentRefused: the URL leads elsewhere than to the public internet, or what is there cannot be had within
                the limits.
        """
        shown = _shown(url)
        try:
            async with asyncio.timeout(seconds):
                return await self._follow(url, max_bytes)
        except _Refused as refused:
            raise DocumentRefused(shown, refused.why, limit=refused.limit) from None
        except TimeoutError:
            why = f"it could not be fetched within {seconds:g} s"
            raise DocumentRefused(shown, why, limit="seconds") from None
        except (OSError, ValueError) as error:
            raise DocumentRefused(shown, f"it could not be fetched ({_brief(error)})") from None

    async def _follow(self, address: str, max_bytes: int) -> Fetched:
        url = _parsed(address)
        for _ in range(_MAX_REDIRECTS + 1):
            answer = await self._one(url, max_bytes)
            if isinstance(answer, Fetched):
                return answer
            url = answer
        raise _Refused(f"it was redirected more than {_MAX_REDIRECTS} times", "redirects")

    async def _one(self, url: URL, max_bytes: int) -> Fetched | URL:
        """Returns what one URL answers, or where it sends its reader."""
        addresses = await self._checked(url)
        # Most processes never fetch anything, and a client of HTTP takes longer to be there than all else of this.
        await asyncio.to_thread(import_module, "turnwire.runtime.pinned")
        from turnwire.runtime.pinned import answered

        async with answered(url, addresses) as response:
            if response.status in _REDIRECTS:
                location = response.headers.get("location", "")
                if not location:
                    raise _Refused(f"it answered {response.status} without saying where to go")
                return _parsed(location, base=url)
            if response.status != 200:
                raise _Refused(f"it answered {response.status}")
            coding = response.headers.get("content-encoding", "").strip().lower()
            pieces = _decoded(response.content.iter_any(), coding, max_bytes)
            data = bytearray()
            async for piece in pieces:
                data += piece
            return Fetched(bytes(data), response.headers.get("content-type", ""), str(url))

    async def _checked(self, url: URL) -> Sequence[Address]:
        """Returns the addresses to which the connection may go."""
        host, port = url.raw_host or "", url.port or 0
        try:
            literal = address_in(host)
        except ValueError:
            raise _Refused("its host is an address in an ambiguous form") from None
        allowed = not self._allowed.isdisjoint({host, f"{host}:{port}"})
        if literal is not None:
            found = [literal]
        else:
            try:
                found = [ipaddress.ip_address(address) for address in await self._resolve(host, port)]
            except OSError:
                raise _Refused(f"no address is known for {host}") from None
        public = found if allowed else [address for address in found if is_public(address)]
        if not public:
            raise _Refused(f"{host} is not on the public internet", "addresses")
        return public


class _Refused(Exception):
    def __init__(self, why: str, limit: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.limit = limit


async def _system(host: str, port: int, /) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # The address of a link carries its zone; it is refused all the same.
    return list(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))


def _parsed(address: str, base: URL | None = None) -> URL:
    """Returns a URL that may be looked at further."""
    try:
        url = URL(address) if base is None else base.join(URL(address))
        port = url.port
    except ValueError:
        raise _Refused("it is no URL") from None
    if url.scheme not in {"http", "https"}:
        raise _Refused(f"only http and https are fetched, not {url.scheme or 'a path'}")
    if url.raw_user is not None or url.raw_password is not None:
        raise _Refused("it holds a user or a password")
    if not url.raw_host or not port:
        raise _Refused("it names no host")
    return url.with_fragment(None)


async def _decoded(pieces: AsyncIterator[bytes], coding: str, max_bytes: int) -> AsyncIterator[bytes]:
    """Yields the content, unpacked, and stops at the limit before it is in memory."""
    unpacker = _Unpacker.of(coding)
    left = max_bytes
    async for received in pieces:
        packed = received
        while packed:
            piece, packed = (packed, b"") if unpacker is None else unpacker.feed(packed, min(_PIECE, left + 1))
            left -= len(piece)
            if left < 0:
                raise _Refused(f"it is larger than {max_bytes} bytes", "bytes")
            yield piece
            # An answer that unpacks to a thousand times its size must not hold the loop.
            await asyncio.sleep(0)
    if unpacker is not None and not unpacker.whole:
        raise _Refused("what came is cut off or not packed as it says")


class _Unpacker:
    """Unpacks gzip and deflate, so many bytes at a time."""

    def __init__(self, wbits: int) -> None:
        self._inflater = zlib.decompressobj(wbits)
        self._raw_allowed = wbits == zlib.MAX_WBITS

    @classmethod
    def of(cls, coding: str) -> _Unpacker | None:
        match coding:
            case "" | "identity":
                return None
            case "gzip" | "x-gzip":
                return cls(zlib.MAX_WBITS | 16)
            case "deflate":
                return cls(zlib.MAX_WBITS)
            case _:
                raise _Refused(f"it is packed as {coding}, which was not asked for")

    @property
    def whole(self) -> bool:
        return self._inflater.eof

    def feed(self, packed: bytes, most: int) -> tuple[bytes, bytes]:
        """Returns what a piece unpacks to, and what of the piece is left."""
        if self._inflater.eof:
            # What follows the end belongs to nothing.
            return b"", b""
        try:
            piece = self._inflater.decompress(packed, most)
        except zlib.error:
            if not self._raw_allowed:
                raise _Refused("what came is not packed as it says") from None
            # Some servers call the bare stream deflate.
            self._inflater, self._raw_allowed = zlib.decompressobj(-zlib.MAX_WBITS), False
            return self.feed(packed, most)
        self._raw_allowed = False
        return piece, self._inflater.unconsumed_tail


def _shown(url: str) -> str:
    """Returns a URL without what may be secret in it, as messages and logs show it."""
    bare = url.partition("?")[0].partition("#")[0]
    scheme, separator, rest = bare.partition("://")
    authority, slash, path = rest.partition("/")
    shown = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
    return shown if len(shown) <= 200 else f"{shown[:199]}…"


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
