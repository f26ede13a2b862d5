"""The places where contents lie keep one contract: a folder, and a real S3-compatible store."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import pytest

from turnwire.errors import ArtifactStoreUnavailable
from turnwire.runtime.settings import ArtifactSettings
from turnwire.runtime.storage import SqliteStore
from turnwire.tool_executor.artifacts import Artifacts, FolderBlobs, folder
from turnwire.tool_executor.artifacts.s3 import PART, S3Blobs
from turnwire.tool_executor.store.schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from turnwire.testing.object_store import ObjectStore
    from turnwire.tool_executor.artifacts import Blobs

SMALL = b"a few bytes"
LARGE = os.urandom(2 * PART + 1_000_003)


class Opening(Protocol):
    def __call__(self) -> AbstractAsyncContextManager[Blobs]: ...


@pytest.fixture(params=["folder", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens one place, as often as wanted."""
    settings = ArtifactSettings()
    if request.param == "s3":
        store: ObjectStore = request.getfixturevalue("object_store")
        settings = ArtifactSettings.model_validate(store.settings())

    @asynccontextmanager
    async def opening() -> AsyncGenerator[Blobs]:
        blobs: Blobs = (
            await FolderBlobs.open(tmp_path / "blobs") if request.param == "folder" else await S3Blobs.open(settings)
        )
        try:
            yield blobs
        finally:
            await blobs.close()

    return opening


async def never() -> bool:
    """Says that a content is used by nobody."""
    return False


async def _keep(blobs: Blobs, data: bytes, tenant: str = "t", piece: int = 1 << 20) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    draft = await blobs.draft()
    try:
        for start in range(0, len(data), piece):
            await draft.write(data[start : start + piece])
        await draft.keep(tenant, sha256)
        await draft.confirm(tenant, sha256)
    finally:
        await draft.discard()
    return sha256


async def _read(blobs: Blobs, sha256: str, start: int = 0, end: int = 10**9, tenant: str = "t") -> bytes:
    async with aclosing(blobs.read(tenant, sha256, start, end)) as pieces:
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("data", [b"", SMALL, LARGE[: PART - 1], LARGE[:PART], LARGE[: PART + 1], LARGE], ids=len)
async def test_a_content_comes_back_as_it_was(opened: Opening, data: bytes):
    async with opened() as blobs:
        sha256 = await _keep(blobs, data)

        assert data == await _read(blobs, sha256, end=len(data))


async def test_any_range_of_a_content_can_be_read(opened: Opening):
    async with opened() as blobs:
        sha256 = await _keep(blobs, LARGE)

        for start, end in ((0, 1), (1, 4), (PART - 1, PART + 1), (len(LARGE) - 1, len(LARGE)), (7, 7)):
            assert LARGE[start:end] == await _read(blobs, sha256, start, end)


async def test_it_is_there_for_whoever_opens_the_place_next(opened: Opening):
    async with opened() as first:
        sha256 = await _keep(first, LARGE)
    async with opened() as second:
        assert LARGE == await _read(second, sha256, end=len(LARGE))
        assert [("t", sha256)] == list(await second.listed())


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
async def test_what_is_not_kept_is_nowhere(opened: Opening, data: bytes):
    async with opened() as blobs:
        draft = await blobs.draft()
        await draft.write(data)
        assert [] == list(await blobs.listed())
        with pytest.raises(FileNotFoundError):
            await _read(blobs, hashlib.sha256(data).hexdigest())
        await draft.discard()
        assert [] == list(await blobs.listed())


async def test_a_full_disk_is_said_to_be_one_and_nothing_is_left_of_what_did_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    blobs = await FolderBlobs.open(tmp_path)
    monkeypatch.setattr(folder, "_write_all", full)
    with pytest.raises(ArtifactStoreUnavailable) as raised:
        await _keep(blobs, SMALL)

    assert f"The artifact store {tmp_path} cannot be used: No space left on device. Make room" in raised.value.message
    assert [] == list((tmp_path / "drafts").iterdir())


async def test_a_content_is_its_tenants_own(opened: Opening):
    async with opened() as blobs:
        sha256 = await _keep(blobs, SMALL, tenant="ann")
        with pytest.raises(FileNotFoundError):
            await _read(blobs, sha256, tenant="an")
        await _keep(blobs, SMALL, tenant="../ann")
        await blobs.delete("../ann", sha256, never)

        assert [("ann", sha256)] == list(await blobs.listed())
        assert SMALL == await _read(blobs, sha256, end=len(SMALL), tenant="ann")


async def test_deleting_removes_a_content_and_what_is_gone_may_be_deleted_again(opened: Opening):
    async with opened() as blobs:
        sha256 = await _keep(blobs, SMALL)
        await blobs.delete("t", sha256, never)
        with pytest.raises(FileNotFoundError):
            await _read(blobs, sha256)
        with pytest.raises(FileNotFoundError):
            await _read(blobs, sha256, 0, 0)
        await blobs.delete("t", sha256, never)

        assert [] == list(await blobs.listed())


async def test_the_same_content_may_be_kept_many_times_at_once(opened: Opening):
    async with opened() as blobs:
        hashes = await asyncio.gather(*(_keep(blobs, SMALL) for _ in range(20)))

        assert 1 == len(set(hashes))
        assert SMALL == await _read(blobs, hashes[0], end=len(SMALL))


async def test_a_name_that_is_no_hash_is_refused(opened: Opening):
    async with opened() as blobs:
        for name in ("../x", "0" * 63, "A" * 64, "0" * 64 + "/x"):
            with pytest.raises(ValueError, match="is no SHA-256"):
                await _read(blobs, name)


async def test_a_sweep_removes_contents_without_a_file_only(opened: Opening, tmp_path: Path):
    store = await SqliteStore.open(tmp_path / "store.sqlite3", SCHEMA)
    try:
        async with opened() as blobs:
            artifacts = Artifacts(store, blobs, ArtifactSettings())
            kept = await artifacts.keep("t", "kept", SMALL)
            await _keep(blobs, b"nobody's")

            assert 1 == await artifacts.sweep()
            assert [("t", kept.sha256)] == list(await blobs.listed())
            await artifacts.delete("t", kept.artifact_id)
            assert [] == list(await blobs.listed())
    finally:
        await store.close()
