"""Creates that can be repeated: the same `request_id` with the same body gives the first result."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from turnwire.agent.store import requests
from turnwire.errors import IdempotencyConflict

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from turnwire.runtime.storage import Transaction


def digest(request: Message) -> str:
    """Returns the hash of a request, its type included."""
    body = request.SerializeToString(deterministic=True)
    return hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\0" + body).hexdigest()


async def earlier(tx: Transaction, tenant: str, request_id: str, request: Message) -> str | None:
    """Returns the name of what the same request made before, or None.

    Raises:
        IdempotencyConflict: the id was used for another request.
    """
    if not request_id:
        return None
    found = await requests.find(tx, tenant, request_id)
    if found is None:
        return None
    if found[0] != digest(request):
        raise IdempotencyConflict("request_id", request_id)
    return found[1]


async def remember(tx: Transaction, tenant: str, request_id: str, request: Message, resource_name: str) -> None:
    """Keeps what a request made."""
    if request_id:
        await requests.remember(tx, tenant, request_id, digest(request), resource_name)
