"""What a tool writes, of any length."""

from __future__ import annotations

import tracemalloc
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from turnwire.runtime.settings import ArtifactSettings
from turnwire.runtime.storage import SqliteStore
from turnwire.tool_executor.artifacts import Artifacts, FolderBlobs
from turnwire.tool_executor.store.schema import SCHEMA
from turnwire.tool_executor.written import LONGEST, Written

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

MIB = 1024 * 1024


@asynccontextmanager
async def _written(folder: Path, **settings: int) -> AsyncGenerator[tuple[Artifacts, Written]]:
    blobs = await FolderBlobs.open(folder / "blobs")
    store = await SqliteStore.open(folder / "tool_executor.sqlite3", SCHEMA)
    artifacts = Artifacts(store, blobs, ArtifactSettings.model_validate(settings))
    try:
        async with AsyncExitStack() as stack:
            yield (
                artifacts,
                Written(artifacts, stack, tenant="t", session_id="sess_1", tool="printer", call_id="call_1"),
            )
    finally:
        await store.close()
        await blobs.close()


async def test_what_is_short_stays_as_it_is(tmp_path: Path):
    async with _written(tmp_path) as (_, written):
        await written.add("é" * (LONGEST // 4))
        await written.add("é" * (LONGEST // 4))
        assert ("é" * (LONGEST // 2), []) == await written.ended()


async def test_of_what_is_long_the_ends_are_told_and_all_of_it_is_kept(tmp_path: Path):
    said = "".join(f"{number} …\n" for number in range(200_000))
    async with _written(tmp_path) as (artifacts, written):
        for start in range(0, len(said), 10_007):
            await written.add(said[start : start + 10_007])
        content, (attachment,) = await written.ended()
        artifact, data = await artifacts.content("t", attachment.artifact_id, most=4 * MIB)

    assert said.encode() == data
    assert ("printer-output.txt", "text/plain") == (attachment.name, attachment.mime_type)
    assert ("sess_1", "call_1") == (artifact.session_id, artifact.metadata["call_id"])
    head, told = content.split("\n[… ")
    told, tail = told.split(" …]\n")
    assert said.startswith(head)
    assert said.endswith(tail)
    left_out = len(data) - len(head.encode()) - len(tail.encode())
    assert f"{left_out} bytes are left out here; all of it is in the attached file printer-output.txt" == told


async def test_64_mb_are_never_in_memory_together(tmp_path: Path):
    piece = "0123456789abcdef" * 4096
    async with _written(tmp_path) as (_, written):
        await written.add(piece)
        tracemalloc.start()
        try:
            for _ in range(64 * MIB // len(piece)):
                await written.add(piece)
            _, kept = await written.ended()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 1 == len(kept)
    assert 64 * MIB < written.size
    assert most < 4 * MIB


@pytest.mark.parametrize("limit", [{"file_bytes": 100_000}, {"tenant_bytes": 100_000}])
async def test_what_cannot_be_kept_is_told_and_goes_on_to_be_taken(tmp_path: Path, limit: dict[str, int]):
    async with _written(tmp_path, **limit) as (_, written):
        for _ in range(40):
            await written.add("x" * 64 * 1024)
        content, kept = await written.ended()

    assert [] == kept
    assert "the rest could not be kept" in content
    assert (40 * 64 * 1024, True) == (written.size, len(content) < LONGEST)
