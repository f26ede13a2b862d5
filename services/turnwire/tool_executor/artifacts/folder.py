"""Contents in a folder: `<tenant>/<first two digits>/<hash>` below it; what is being written lies in `drafts`."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from turnwire.errors import ArtifactStoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

T = TypeVar("T")
_PIECE = 256 * 1024
_DRAFTS = "drafts"
_HASH = re.compile("[0-9a-f]{64}")


class FolderBlobs:
    """Contents of one process in one folder."""

    def __init__(self, folder: Path) -> None:
        """`open` opens it."""
        self._folder = folder

    @classmethod
    async def open(cls, folder: Path) -> FolderBlobs:
        """Opens a folder; drafts of a process that has died are removed."""
        await asyncio.to_thread(_prepare, folder)
        return cls(folder)

    async def draft(self) -> FolderDraft:
        """Begins a content."""
        name = self._folder / _DRAFTS / secrets.token_hex(16)
        return FolderDraft(self, await self.writing(_created, name), name)

    async def read(self, tenant: str, sha256: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yields the bytes from `start` to `end`, exclusive, in pieces."""
        descriptor = await _to_end(os.open, self.path(tenant, sha256), os.O_RDONLY | os.O_CLOEXEC)
        try:
            while start < end:
                data = await _to_end(os.pread, descriptor, min(_PIECE, end - start), start)
                if not data:
                    return
                start += len(data)
                yield data
        finally:
            os.close(descriptor)

    async def delete(self, tenant: str, sha256: str, is_used: Callable[[], Awaitable[bool]]) -> None:
        """Removes a content; one that is gone is no error. The folder is this process's: nobody takes it meanwhile."""
        await asyncio.to_thread(self.path(tenant, sha256).unlink, missing_ok=True)

    async def listed(self) -> Sequence[tuple[str, str]]:
        """Returns (tenant, hash) of all that is there."""
        return await asyncio.to_thread(self._listed)

    async def tidy(self, is_used: Callable[[str, str], Awaitable[bool]]) -> None:
        """Has nothing to do: `open` has removed the drafts."""

    async def close(self) -> None:
        """Has nothing to close."""

    async def writing(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a function that writes here, in a thread, to its end.

        Raises:
            ArtifactStoreUnavailable: there is no room, or the disk refuses.
        """
        try:
            return await _to_end(function, *args)
        except OSError as error:
            todo = "Make room on its disk, or put `data_dir` on another one"
            raise ArtifactStoreUnavailable(str(self._folder), error.strerror or str(error), todo) from None

    def path(self, tenant: str, sha256: str) -> Path:
        """Returns where a content lies."""
        if _HASH.fullmatch(sha256) is None:
            raise ValueError(f"{sha256!r} is no SHA-256")
        return self._folder / _folder_of(tenant) / sha256[:2] / sha256

    def _listed(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for folder in self._folder.iterdir():
            if folder.name != _DRAFTS and folder.is_dir():
                tenant = unquote(folder.name).removeprefix("=")
                found += [(tenant, file.name) for file in folder.glob("*/*") if _HASH.fullmatch(file.name)]
        return found


class FolderDraft:
    """A content that is being written."""

    def __init__(self, blobs: FolderBlobs, descriptor: int, file: Path) -> None:
        """Takes over an open file."""
        self._blobs = blobs
        self._descriptor = descriptor
        self._file = file
        self._open = True

    async def write(self, data: bytes) -> None:
        """Appends bytes."""
        await self._blobs.writing(_write_all, self._descriptor, data)

    async def keep(self, tenant: str, sha256: str) -> None:
        """Makes what was written the content of a hash, on the disk."""
        target = self._blobs.path(tenant, sha256)
        await self._blobs.writing(self._kept, target)

    async def confirm(self, tenant: str, sha256: str) -> None:
        """Has nothing to see to: no other process removes it."""

    async def discard(self) -> None:
        """Throws away what was written; after `keep` it does nothing."""
        if self._open:
            self._open = False
            os.close(self._descriptor)
            await asyncio.to_thread(self._file.unlink, missing_ok=True)

    def _kept(self, target: Path) -> None:
        os.fsync(self._descriptor)
        new_folders = [folder for folder in (target.parent, target.parent.parent) if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file.replace(target)
        for folder in (target.parent, *(each.parent for each in new_folders)):
            _sync_folder(folder)
        self._open = False
        os.close(self._descriptor)


async def _to_end(function: Callable[..., T], *args: Any) -> T:
    """Runs a function in a thread, to its end even when the caller goes: no file is closed under a thread."""
    working = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([working])
        raise


def _created(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _prepare(folder: Path) -> None:
    shutil.rmtree(folder / _DRAFTS, ignore_errors=True)
    (folder / _DRAFTS).mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)


def _folder_of(tenant: str) -> str:
    # The sign in front keeps a tenant from being called `drafts`, `.` or `..`.
    return "=" + quote(tenant, safe="")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
