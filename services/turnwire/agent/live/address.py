"""Where other replicas reach this process."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnwire.runtime.settings import Settings

_EVERYWHERE = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104 - compared only


async def own_address(settings: Settings) -> str:
    """Returns the address that stands in the lease of this process."""
    if settings.agent.advertise_address:
        return settings.agent.advertise_address
    host = settings.listen.host
    if host in _EVERYWHERE:
        host = await asyncio.to_thread(_of_this_host)
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{bracketed}:{settings.port('agent')}"


def _of_this_host() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"  # a host that does not know its own name: replicas elsewhere need `advertise_address`
