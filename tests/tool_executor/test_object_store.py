"""Files in a real S3-compatible store: whole or not there, for every replica, and clear words when it is away."""

from __future__ import annotations

import hashlib
import os
import re
import tracemalloc
from contextlib import AsyncExitStack, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from google.protobuf.duration_pb2 import Duration

from tests.tool_executor.calling import CODE, SECRET, calling
from turnwire.cli.checks import state
from turnwire.errors import ArtifactStoreUnavailable, ContentLost, StoreUnavailable
from turnwire.runtime.settings import ArtifactSettings, Settings
from turnwire.runtime.storage import SqliteStore
from turnwire.testing.mesh import running_mesh
from turnwire.testing.object_store import BUCKET, SECRET_KEY, running_object_store
from turnwire.tool_executor.artifacts import Artifacts, s3
from turnwire.tool_executor.artifacts.s3 import PART, S3Blobs
from turnwire.tool_executor.store.schema import SCHEMA
from turnwire.tool_executor.v1 import tool_executor_service_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from turnwire.testing.object_store import ObjectStore

pytestmark = pytest.mark.mesh
DATA = os.urandom(PART + 1_000_003)
SHA256 = hashlib.sha256(DATA).hexdigest()
CONTENT = f"contents/=t/{SHA256}"


def _prefix(place: dict[str, str]) -> str:
    return place["url"].removeprefix(f"s3://{BUCKET}/") + "/"


def _keys(store: ObjectStore, place: dict[str, str]) -> list[str]:
    found = store.client().list_objects_v2(Bucket=BUCKET, Prefix=_prefix(place))
    return sorted(entry["Key"].removeprefix(_prefix(place)) for entry in found.get("Contents", []))


def _put(store: ObjectStore, place: dict[str, str], key: str, body: bytes) -> None:
    store.client().put_object(Bucket=BUCKET, Key=_prefix(place) + key, Body=body)


def _uploads(store: ObjectStore, place: dict[str, str]) -> list[Any]:
    found = store.client().list_multipart_uploads(Bucket=BUCKET, Prefix=_prefix(place))
    return list(found.get("Uploads", []))


async def _opened(stack: AsyncExitStack, settings: dict[str, str]) -> S3Blobs:
    blobs = await S3Blobs.open(ArtifactSettings.model_validate(settings))
    stack.push_async_callback(blobs.close)
    return blobs


async def yes() -> bool:
    """Says that a content is used."""
    return True


async def no() -> bool:
    """Says that a content is not used."""
    return False


async def test_two_executors_serve_the_files_of_one_store(object_store: ObjectStore, postgres: str):
    settings: dict[str, Any] = {
        "services": ("tool_executor",),
        "providers": {"tool_executor": []},
        "store": {"url": postgres},
        "artifacts": object_store.settings(),
    }
    async with (
        running_mesh(**settings) as first,
        running_mesh(**settings) as second,
        calling(first) as one,
        calling(second) as other,
    ):
        artifact = await one.upload(DATA, sha256=SHA256)

        assert DATA == await other.download(artifact.artifact_id)
        assert DATA[PART - 5 : PART + 5] == await other.download(artifact.artifact_id, PART - 5, PART + 5)


async def test_a_workspace_is_restored_at_another_replica_from_the_store_alone(
    object_store: ObjectStore, postgres: str
):
    place = object_store.settings()
    settings: dict[str, Any] = {
        "services": ("sandbox_runner", "tool_executor"),
        "providers": {"tool_executor": [CODE]},
        "access": SECRET | {"api_keys": [{"name": "t", "key": "key-of-a-test-000000", "roles": ["admin"]}]},
        "store": {"url": postgres},
        "artifacts": place,
        "sandbox": {"packages": [], "preload": []},
    }
    # Each has a folder of its own, which goes with it.
    async with running_mesh(**settings) as mesh, calling(mesh, "key-of-a-test-000000") as executor:
        ran = await executor.run("code_interpreter", {"code": "open('kept.txt', 'w').write('from the store')"})
        assert not ran.reason, ran.result
    async with running_mesh(**settings) as mesh, calling(mesh, "key-of-a-test-000000") as executor:
        again = await executor.run("code_interpreter", {"code": "open('kept.txt').read()"}, "call_2")
        [content] = [key for key in _keys(object_store, place) if key.startswith("contents/=default/")]
        object_store.client().delete_object(Bucket=BUCKET, Key=_prefix(place) + content)
    async with running_mesh(**settings) as mesh, calling(mesh, "key-of-a-test-000000") as executor:
        code = {"code": "open('kept.txt').read()"}
        limits = tool_executor_service_pb2.ExecutionLimits(connect=Duration(seconds=1))
        gone = await executor.run("code_interpreter", code, "call_3", limits=limits)

    assert again.result.content.startswith("'from the store'")
    assert "their files are there again" in again.result.content
    # Without the content in the bucket there is nowhere else that the file could come from.
    assert gone.reason, gone.result


async def test_an_upload_is_not_in_memory(object_store: ObjectStore):
    async with AsyncExitStack() as stack:
        blobs = await _opened(stack, object_store.settings())
        draft = await blobs.draft()
        stack.push_async_callback(draft.discard)
        piece = os.urandom(1 << 20)
        tracemalloc.start()
        try:
            for _ in range(12 * PART // len(piece)):
                await draft.write(piece)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak < 5 * PART


async def test_nothing_is_left_of_an_upload_but_its_content(object_store: ObjectStore, tmp_path: Path):
    place = object_store.settings()
    async with AsyncExitStack() as stack:
        blobs = await _opened(stack, place)
        store = await SqliteStore.open(tmp_path / "store.sqlite3", SCHEMA)
        stack.push_async_callback(store.close)
        artifacts = Artifacts(store, blobs, ArtifactSettings())
        await artifacts.keep("t", "large", DATA)
        dropped = await blobs.draft()
        await dropped.write(DATA)
        await dropped.discard()

    assert [CONTENT] == _keys(object_store, place)
    assert [] == _uploads(object_store, place)


async def test_a_content_that_was_altered_is_never_had_whole(object_store: ObjectStore, tmp_path: Path):
    place = object_store.settings()
    got = bytearray()
    async with AsyncExitStack() as stack:
        blobs = await _opened(stack, place)
        store = await SqliteStore.open(tmp_path / "store.sqlite3", SCHEMA)
        stack.push_async_callback(store.close)
        artifacts = Artifacts(store, blobs, ArtifactSettings())
        kept = await artifacts.keep("t", "file", DATA)
        _put(object_store, place, CONTENT, b"x" + DATA[1:])

        async def read() -> None:
            async for piece in artifacts.read("t", kept.artifact_id):
                got.extend(piece)

        with pytest.raises(ContentLost, match="was altered"):
            await read()

    assert len(got) < len(DATA)


async def test_a_content_that_a_replica_takes_while_it_is_removed_is_put_back(object_store: ObjectStore):
    place = object_store.settings()
    async with AsyncExitStack() as stack:
        blobs = await _opened(stack, place)
        draft = await blobs.draft()
        stack.push_async_callback(draft.discard)
        await draft.write(DATA)
        await draft.keep("t", SHA256)

        await blobs.delete("t", SHA256, yes)  # the row was there before this looked: it is put back here
        assert CONTENT in _keys(object_store, place)
        await blobs.delete("t", SHA256, no)  # the row comes after: the writer sees it when it confirms
        assert CONTENT not in _keys(object_store, place)
        await draft.confirm("t", SHA256)
        assert CONTENT in _keys(object_store, place)

    assert [CONTENT] == _keys(object_store, place)


async def test_what_processes_that_died_left_half_done_is_ended_once_nobody_can_be_at_it(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    place = object_store.settings()
    other = hashlib.sha256(b"other").hexdigest()
    removed = [f"removed/=t/{SHA256}/1", f"removed/=t/{other}/1"]
    _put(object_store, place, removed[0], DATA)
    _put(object_store, place, removed[1], b"other")
    _put(object_store, place, "removed/README", b"put here by somebody else")

    async def used(tenant: str, sha256: str) -> bool:
        return (tenant, sha256) == ("t", SHA256)

    async with AsyncExitStack() as stack:
        blobs = await _opened(stack, place)
        whole, cut = await blobs.draft(), await blobs.draft()
        for draft in (whole, cut):
            await draft.write(DATA)
        await whole.keep("t", other)
        await blobs.tidy(used)
        # What is used is there again; everything else may have somebody who is at it still.
        young = _keys(object_store, place)
        assert 1 == len(_uploads(object_store, place))
        monkeypatch.setattr(s3, "ABANDONED", -timedelta(minutes=1))
        await blobs.tidy(used)

    drafts = [key for key in young if key.startswith("drafts/")]
    assert 1 == len(drafts)
    assert sorted([CONTENT, f"contents/=t/{other}", *drafts, *removed, "removed/README"]) == young
    assert sorted([CONTENT, f"contents/=t/{other}", "removed/README"]) == _keys(object_store, place)
    assert [] == _uploads(object_store, place)


@pytest.mark.parametrize("done", [True, False], ids=["done", "lost"])
async def test_an_upload_that_is_not_there_any_more_has_ended_well_if_its_object_is_there(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, done: bool
):
    place = object_store.settings()
    async with AsyncExitStack() as stack:
        blobs = await _opened(stack, place)
        draft = await blobs.draft()
        stack.push_async_callback(draft.discard)
        await draft.write(DATA)
        complete: Any = blobs.client.complete_multipart_upload

        async def ended(**given: Any) -> None:
            # As some stores answer the client's second try, the answer to the first being lost.
            if done:
                await complete(**given)
            raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")

        monkeypatch.setattr(blobs.client, "complete_multipart_upload", ended)
        with nullcontext() if done else pytest.raises(ArtifactStoreUnavailable, match="NoSuchUpload"):
            await draft.keep("t", SHA256)

    assert ([CONTENT] if done else []) == _keys(object_store, place)


async def test_a_file_that_is_kept_is_given_back_whether_its_draft_can_be_removed_or_not(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = object_store.settings()

    async def away(key: str) -> None:
        raise ArtifactStoreUnavailable("the store", "it is away", "Try again")

    async with AsyncExitStack() as stack:
        blobs = await _opened(stack, place)
        store = await SqliteStore.open(tmp_path / "store.sqlite3", SCHEMA)
        stack.push_async_callback(store.close)
        monkeypatch.setattr(blobs, "remove", away)
        kept = await Artifacts(store, blobs, ArtifactSettings()).keep("t", "large", DATA)

    assert SHA256 == kept.sha256
    assert CONTENT in _keys(object_store, place)


@pytest.mark.parametrize(
    ("change", "detail", "todo"),
    [
        ({"secret_key": "not-the-secret-of-tests"}, "SignatureDoesNotMatch", "artifacts.secret_key"),
        ({"access_key": "nobody"}, "InvalidAccessKeyId", "artifacts.access_key"),
        ({"url": "s3://no-such-bucket-here/x"}, "NoSuchBucket", "Make the bucket"),
        ({"endpoint": "http://127.0.0.1:9"}, "cannot be reached", "artifacts.endpoint"),
    ],
    ids=["secret", "key", "bucket", "away"],
)
async def test_a_store_that_cannot_be_used_says_why_and_what_to_do(
    object_store: ObjectStore, change: dict[str, str], detail: str, todo: str
):
    settings = object_store.settings() | change
    with pytest.raises(ArtifactStoreUnavailable) as raised:
        async with running_mesh(services=("tool_executor",), providers={"tool_executor": []}, artifacts=settings):
            pass

    told = str(raised.value)
    assert detail in raised.value.detail
    assert todo in told
    assert re.search(SECRET_KEY + "|" + re.escape(change.get("secret_key", SECRET_KEY)), told) is None


async def test_files_are_unavailable_while_the_store_is_away_and_then_again_there():
    with running_object_store() as store:
        settings: dict[str, Any] = {
            "services": ("tool_executor",),
            "providers": {"tool_executor": []},
            "artifacts": store.settings(),
        }
        async with running_mesh(**settings) as mesh, calling(mesh) as executor:
            artifact = await executor.upload(DATA)
            store.kill()
            for call in (executor.download(artifact.artifact_id), executor.upload(b"more")):
                with pytest.raises(StoreUnavailable, match=r"cannot be reached.*artifacts\.endpoint"):
                    await call
            store.start()

            assert DATA == await executor.download(artifact.artifact_id)
            assert (await executor.upload(b"more")).artifact_id


def test_the_doctor_looks_at_the_store(object_store: ObjectStore):
    given = object_store.settings()
    good = state.artifacts(Settings.model_validate({"artifacts": given}))
    bad = state.artifacts(Settings.model_validate({"artifacts": given | {"secret_key": "not-the-secret"}}))

    assert ("ok", True) == (good.state, given["endpoint"] in good.said)
    assert ("problem", True) == (bad.state, "SignatureDoesNotMatch" in bad.said)
    assert "artifacts.secret_key" in bad.todo


def test_the_secret_is_not_shown_with_the_settings(object_store: ObjectStore):
    settings = Settings.model_validate({"artifacts": object_store.settings()})

    assert SECRET_KEY not in repr(settings)
