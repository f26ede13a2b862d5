"""What artifacts ask of the place where their contents lie: a folder, or an object store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence


class BlobDraft(Protocol):
    """A content that is being written. Whoever began it keeps or discards it."""

    async def write(self, data: bytes) -> None:
        """Appends bytes."""
        ...

    async def keep(self, tenant: str, sha256: str) -> None:
        """Makes what was written the content of a hash: when this returns, it survives a loss of power."""
        ...

    async def confirm(self, tenant: str, sha256: str) -> None:
        """Sees that what was kept is there still, now that it is known to be used: a replica may have removed it."""
        ...

    async def discard(self) -> None:
        """Throws away what was written; what was kept stays."""
        ...


class Blobs(Protocol):
    """Contents by tenant and SHA-256; one that is there never changes."""

    async def draft(self) -> BlobDraft:
        """Begins a content."""
        ...

    def read(self, tenant: str, sha256: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yields the bytes from `start` to `end`, exclusive, in pieces; a later `delete` does not disturb it.

        Raises:
            FileNotFoundError: the content is not there.
        """
        ...

    async def delete(self, tenant: str, sha256: str, is_used: Callable[[], Awaitable[bool]]) -> None:
        """Removes a content; one that is gone is no error.

        Where replicas share the place, it is put back when `is_used` says afterwards that another has taken it.
        """
        ...

    async def listed(self) -> Sequence[tuple[str, str]]:
        """Returns (tenant, hash) of all that is there."""
        ...

    async def tidy(self, is_used: Callable[[str, str], Awaitable[bool]]) -> None:
        """Removes what processes that have died left half-done."""
        ...

    async def close(self) -> None:
        """Closes what was opened."""
        ...
