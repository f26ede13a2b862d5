"""A request that goes to addresses that were checked, and to no others."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from yarl import URL

    from turnwire.runtime.fetch import Address

_PIECE = 64 * 1024
_MAX_HEADER = 16 * 1024
_HEADERS = {"accept": "*/*", "accept-encoding": "gzip, deflate", "user-agent": "turnwire"}


@asynccontextmanager
async def answered(url: URL, addresses: Sequence[Address]) -> AsyncGenerator[aiohttp.ClientResponse]:
    """Gives the answer of a URL whose host has these addresses, its content packed as it comes.

    Raises:
        OSError: it cannot be had.
    """
    connector = aiohttp.TCPConnector(
        resolver=_Pinned(url.raw_host or "", addresses),
        use_dns_cache=False,
        force_close=True,
        limit=1,
        happy_eyeballs_delay=None,
    )
    # A session for each address, so that nothing (cookies, connections) goes along a redirect.
    session = aiohttp.ClientSession(
        connector=connector,
        # Neither a proxy nor a password of the environment: a proxy would resolve the name anew.
        trust_env=False,
        auto_decompress=False,
        # One limit of the caller's holds for everything together.
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=_PIECE,
        max_line_size=_MAX_HEADER,
        max_field_size=_MAX_HEADER,
    )
    try:
        async with session, session.get(url, headers=_HEADERS, allow_redirects=False) as response:
            yield response
    except aiohttp.ClientError as error:
        raise OSError(str(error) or type(error).__name__) from None


class _Pinned(AbstractResolver):
    """Knows the checked addresses of one host and nothing else, so that no second look-up can tell another story."""

    def __init__(self, host: str, addresses: Sequence[Address]) -> None:
        self._host = host
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host != self._host:
            raise OSError(f"{host} was not checked")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""
