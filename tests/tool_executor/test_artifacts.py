"""Files: in and out unchanged, by ranges, a tenant's own, bounded, and each content on the disk once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.tool_executor.calling import KEYS, TWO_TENANTS, Executor, calling, executor_of
from turnwire.errors import (
    ContentLost,
    DocumentRefused,
    IdempotencyConflict,
    InvalidArgument,
    NotFound,
    QuotaExhausted,
)
from turnwire.runtime.settings import ArtifactSettings
from turnwire.runtime.storage import SqliteStore
from turnwire.testing.mesh import running_mesh
from turnwire.tool_executor.artifacts import Artifacts, FolderBlobs, sniffed
from turnwire.tool_executor.store.schema import SCHEMA
from turnwire.tool_executor.v1 import artifact_service_pb2 as messages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.mesh
DATA = os.urandom(3_000_000)


async def test_a_file_comes_back_as_it_was():
    async with executor_of() as executor:
        artifact = await executor.upload(DATA, name="noise.bin", session_id="sess_1", metadata={"a": "b"})
        got = (
            await executor.call("GetArtifact", messages.GetArtifactRequest(artifact_id=artifact.artifact_id))
        ).artifact
        data = await executor.download(artifact.artifact_id)

    assert DATA == data
    assert artifact == got
    assert hashlib.sha256(DATA).hexdigest() == artifact.sha256
    assert ("noise.bin", "application/octet-stream", len(DATA)) == (got.name, got.mime_type, got.size_bytes)
    assert ("sess_1", {"a": "b"}) == (got.session_id, dict(got.metadata))
    assert artifact.artifact_id.startswith("art_")


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (1, 0), (5, 5), (262_143, 262_145), (2_999_999, 0), (3_000_000, 0), (100, 10**12)]
)
async def test_ranges(start: int, end: int):
    async with executor_of() as executor:
        artifact = await executor.upload(DATA)
        data = await executor.download(artifact.artifact_id, start, end)

    assert DATA[start : end or None] == data


@pytest.mark.parametrize(
    ("start", "end", "field"),
    [(-1, 0, "start_byte"), (3_000_001, 0, "start_byte"), (5, 4, "end_byte"), (0, -1, "end_byte")],
)
async def test_ranges_that_cannot_be(start: int, end: int, field: str):
    async with executor_of() as executor:
        artifact = await executor.upload(DATA)
        with pytest.raises(InvalidArgument) as raised:
            await executor.download(artifact.artifact_id, start, end)

    assert [field] == [each.field for each in raised.value.violations]


async def test_an_empty_file_is_a_file():
    async with executor_of() as executor:
        artifact = await executor.upload(b"", name="empty.txt")

        assert b"" == await executor.download(artifact.artifact_id)
        assert (0, "text/plain") == (artifact.size_bytes, artifact.mime_type)


async def test_another_hash_than_the_expected_one_is_refused(tmp_path: Path):
    async with executor_of(folder=tmp_path) as executor:
        with pytest.raises(InvalidArgument) as raised:
            await executor.upload(b"abc", sha256="0" * 64)
        good = await executor.upload(b"abc", sha256=hashlib.sha256(b"abc").hexdigest().upper())
        assert ["open.sha256"] == [each.field for each in raised.value.violations]
        assert [good.sha256] == _contents(tmp_path)


async def test_a_repeated_request_id_gives_the_first_file():
    async with executor_of() as executor:
        first = await executor.upload(b"abc", request_id="r1")
        again = await executor.upload(b"abc", request_id="r1", sha256=first.sha256)
        with pytest.raises(IdempotencyConflict):
            await executor.upload(b"abd", request_id="r1")
        with pytest.raises(IdempotencyConflict):
            await executor.upload(b"abc", request_id="r1", name="other")
        at_once = await asyncio.gather(*(executor.upload(b"xyz", request_id="r2") for _ in range(10)))
        listed = (await executor.call("ListArtifacts", messages.ListArtifactsRequest())).artifacts

    assert first == again
    assert 1 == len({each.artifact_id for each in at_once})
    assert 2 == len(listed)


async def test_one_content_lies_on_the_disk_once_and_goes_with_its_last_file(tmp_path: Path):
    async with executor_of(folder=tmp_path) as executor:
        one, other = await executor.upload(b"same", name="a"), await executor.upload(b"same", name="b")
        assert [one.sha256] == _contents(tmp_path)
        await _delete(executor, one.artifact_id)
        assert b"same" == await executor.download(other.artifact_id)
        await _delete(executor, other.artifact_id)
        assert [] == _contents(tmp_path)
        for call in (_delete(executor, other.artifact_id), executor.download(other.artifact_id)):
            with pytest.raises(NotFound):
                await call


async def test_deleting_and_uploading_the_same_content_at_once_leaves_no_file_without_content(tmp_path: Path):
    async with executor_of(folder=tmp_path) as executor:
        kept = [await executor.upload(b"same")]
        for _ in range(25):
            gone = kept.pop()
            _, artifact, another = await asyncio.gather(
                _delete(executor, gone.artifact_id), executor.upload(b"same"), executor.upload(b"same")
            )
            await _delete(executor, another.artifact_id)
            kept.append(artifact)
            assert b"same" == await executor.download(artifact.artifact_id)
        await _delete(executor, kept[0].artifact_id)
        assert [] == _contents(tmp_path)


class _SlowToDelete(FolderBlobs):
    """Waits before it removes a content."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def delete(self, tenant: str, sha256: str, is_used: Callable[[], Awaitable[bool]]) -> None:
        self.reached.set()
        await self.gate.wait()
        await super().delete(tenant, sha256, is_used)


async def test_a_content_that_is_being_removed_is_taken_by_nobody(tmp_path: Path):
    await FolderBlobs.open(tmp_path / "blobs")
    blobs = _SlowToDelete(tmp_path / "blobs")
    store = await SqliteStore.open(tmp_path / "store.sqlite3", SCHEMA)
    try:
        artifacts = Artifacts(store, blobs, ArtifactSettings())
        first = await artifacts.keep("t", "a", b"same")
        deleting = asyncio.create_task(artifacts.delete("t", first.artifact_id))
        await blobs.reached.wait()
        keeping = asyncio.create_task(artifacts.keep("t", "b", b"same"))
        # It would be done by far, if it did not wait for the end of the removal.
        await asyncio.wait([keeping], timeout=0.3)
        blobs.gate.set()
        await deleting
        second = await keeping
        _, data = await artifacts.content("t", second.artifact_id, most=100)
    finally:
        await store.close()

    assert b"same" == data


async def test_a_content_that_somebody_took_away_is_told_apart_from_a_file_that_is_gone(tmp_path: Path):
    async with executor_of(folder=tmp_path) as executor:
        artifact = await executor.upload(b"abc")
        for path in (tmp_path / "data" / "artifacts").glob("=*/*/*"):
            path.unlink()
        with pytest.raises(ContentLost) as raised:
            await executor.download(artifact.artifact_id)

    assert f"The content of {artifact.artifact_id} is missing in the artifact store" in raised.value.message
    assert ({"artifact_id": artifact.artifact_id}, False) == (raised.value.metadata, raised.value.retryable)


async def test_files_are_bounded_each_and_together(tmp_path: Path):
    limits = {"file_bytes": 10_000, "tenant_bytes": 25_000}
    async with executor_of(folder=tmp_path, artifacts=limits) as executor:
        with pytest.raises(DocumentRefused) as large:
            await executor.upload(b"x" * 10_001, piece=999)
        first = await executor.upload(b"a" * 10_000)
        await executor.upload(b"b" * 10_000)
        with pytest.raises(QuotaExhausted) as full:
            await executor.upload(b"c" * 5_001)
        assert 2 == len(_contents(tmp_path))
        await _delete(executor, first.artifact_id)
        await executor.upload(b"c" * 5_001)

    assert "10000" == large.value.metadata["limit"]
    assert {"resource_type": "artifact", "used_bytes": "20000", "limit_bytes": "25000"} == full.value.metadata


@pytest.mark.parametrize(
    ("opened", "field"),
    [
        ({"name": ""}, "open.name"),
        ({"name": "../x"}, "open.name"),
        ({"name": "a\nb"}, "open.name"),
        ({"mime_type": "text"}, "open.mime_type"),
        ({"sha256": "abc"}, "open.sha256"),
        ({"metadata": {"k" * 65: "v"}}, f"open.metadata['{'k' * 64}']"),
    ],
    ids=str,
)
async def test_an_upload_that_cannot_be(opened: dict[str, Any], field: str):
    async with executor_of() as executor:
        with pytest.raises(InvalidArgument) as raised:
            await executor.upload(b"abc", **opened)

    assert [field] == [each.field for each in raised.value.violations]


async def test_an_upload_begins_with_open_and_goes_on_with_data():
    opened = messages.UploadArtifactRequest(open=messages.OpenUpload(name="x"))
    data = messages.UploadArtifactRequest(data=b"x")
    large = messages.UploadArtifactRequest(data=b"x" * (1024 * 1024 + 1))
    async with executor_of() as executor:
        for requests, field in (([], "open"), ([data], "open"), ([opened, opened], "data"), ([opened, large], "data")):
            with pytest.raises(InvalidArgument) as raised:
                await executor.call("UploadArtifact", iter(requests))
            assert [field] == [each.field for each in raised.value.violations]


async def test_files_are_listed_newest_first_in_pages_and_by_session():
    async with executor_of() as executor:
        made = [await executor.upload(b"%d" % n, name=f"{n}", session_id=f"s{n % 2}") for n in range(7)]
        got: list[str] = []
        token = ""
        while True:
            request = messages.ListArtifactsRequest(page_size=3, page_token=token)
            response = await executor.call("ListArtifacts", request)
            got += [each.artifact_id for each in response.artifacts]
            assert len(response.artifacts) <= 3
            token = response.next_page_token
            if not token:
                break
        odd = (await executor.call("ListArtifacts", messages.ListArtifactsRequest(session_id="s1"))).artifacts

    assert [each.artifact_id for each in reversed(made)] == got
    assert ["5", "3", "1"] == [each.name for each in odd]


async def test_files_of_another_tenant_are_not_there(tmp_path: Path):
    async with (
        running_mesh(services=("tool_executor",), access=TWO_TENANTS, folder=tmp_path) as mesh,
        calling(mesh, KEYS["alice"]) as alice,
        calling(mesh, KEYS["bob"]) as bob,
    ):
        artifact = await alice.upload(b"secret", request_id="r")
        for call in (
            bob.download(artifact.artifact_id),
            bob.call("GetArtifact", messages.GetArtifactRequest(artifact_id=artifact.artifact_id)),
            _delete(bob, artifact.artifact_id),
        ):
            with pytest.raises(NotFound):
                await call
        assert not (await bob.call("ListArtifacts", messages.ListArtifactsRequest())).artifacts
        own = await bob.upload(b"secret", request_id="r")
        await _delete(bob, own.artifact_id)
        assert b"secret" == await alice.download(artifact.artifact_id)


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("x", b"\x89PNG\r\n\x1a\n....", "image/png"),
        ("x.txt", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("x", b"RIFF....WEBP", "image/webp"),
        ("x", b"....    WEBP", "text/plain"),
        ("x.docx", b"PK\x03\x04....", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("x.txt", b"PK\x03\x04....", "application/zip"),
        ("x.pdf", b"%PDF-1.7", "application/pdf"),
        ("x.pdf", b"no pdf", "text/plain"),
        ("x.png", b"no picture", "text/plain"),
        ("x.md", b"# Title", "text/markdown"),
        ("x.csv", b"a,b\n1,2", "text/csv"),
        ("x.json", b"{}", "application/json"),
        ("x.txt", b"\x7fELF\x02", "application/x-executable"),
        ("x.txt", b"a\0b", "application/octet-stream"),
        ("x.txt", b"\xff\xfe\xfd", "application/octet-stream"),
        ("x", "Grüße".encode()[:-1] + b"\xc3", "text/plain"),
        ("x", b"<!DOCTYPE html><p>", "text/html"),
    ],
)
def test_media_types_are_found_by_the_content(name: str, head: bytes, expected: str):
    assert expected == sniffed(name, head)


async def _delete(executor: Executor, artifact_id: str) -> None:
    await executor.call("DeleteArtifact", messages.DeleteArtifactRequest(artifact_id=artifact_id))


def _contents(folder: Path) -> list[str]:
    drafts = list((folder / "data" / "artifacts" / "drafts").iterdir())
    assert [] == drafts
    return sorted(path.name for path in (folder / "data" / "artifacts").glob("=*/*/*"))
