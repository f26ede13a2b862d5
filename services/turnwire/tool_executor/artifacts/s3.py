"""Contents in a bucket of an S3-compatible store, for replicas to share: `<prefix>/contents/<tenant>/<hash>`.

What is being written lies in `drafts`, as parts or as an object, and becomes a content by a copy within the store, so
no content is ever half there. What is being removed passes through `removed`, so that it can be put back.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import structlog
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from turnwire.errors import ArtifactStoreUnavailable
from turnwire.tool_executor.artifacts.s3_failures import missing, told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

    from turnwire.runtime.settings import ArtifactSettings

_log = structlog.get_logger(__name__)
PART = 8 * 1024 * 1024
"""A draft holds at most so much in memory, and what one write brings."""
_PIECE = 256 * 1024
ABANDONED = timedelta(days=1)
"""A draft of that age has no writer any more, and a removal no process that ends it: calls are shorter."""
_HASH = re.compile("[0-9a-f]{64}")


class S3Blobs:
    """Contents below a prefix of a bucket."""

    def __init__(self, client: S3Client, stack: AsyncExitStack, settings: ArtifactSettings) -> None:
        """`open` opens it."""
        parts = urlsplit(settings.url)
        self.client = client
        self.bucket = parts.netloc
        self.where = where(settings)
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._stack = stack

    @classmethod
    async def open(cls, settings: ArtifactSettings) -> S3Blobs:
        """Opens a bucket, after a look at it: a service that could keep nothing does not start.

        Raises:
            ArtifactStoreUnavailable: it is away, refuses the key, or has no such bucket.
        """
        stack = AsyncExitStack()
        config = AioConfig(
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=50,
            # All calls may be repeated: what lies under a hash is always the same, parts have numbers.
            retries={"mode": "standard", "total_max_attempts": 4},
            signature_version="s3v4",
            s3={"addressing_style": "path" if settings.endpoint else "auto"},
        )
        client = await stack.enter_async_context(
            get_session().create_client(
                "s3",
                region_name=settings.region,
                endpoint_url=settings.endpoint or None,
                aws_access_key_id=settings.access_key or None,
                aws_secret_access_key=settings.secret_key or None,
                config=config,
            )
        )
        blobs = cls(client, stack, settings)
        try:
            await blobs.check()
        except BaseException:
            await stack.aclose()
            raise
        return blobs

    async def check(self) -> None:
        """Sees that the store answers, knows the key, and has the bucket.

        Raises:
            ArtifactStoreUnavailable: something of that is not so.
        """
        with told(self.where):
            # Unlike HeadBucket it says why it refuses.
            await self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)

    async def draft(self) -> S3Draft:
        """Begins a content."""
        return S3Draft(self, f"{self._prefix}drafts/{secrets.token_hex(16)}")

    async def read(self, tenant: str, sha256: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yields the bytes from `start` to `end`, exclusive, in pieces."""
        key = self.key(tenant, sha256)
        with told(self.where):
            if start >= end:
                if not await self.has(key):
                    raise FileNotFoundError(key)
                return
            try:
                response = await self.client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            except ClientError as error:
                if missing(error):
                    raise FileNotFoundError(key) from None
                raise
            async with response["Body"] as body:
                async for piece in body.iter_chunks(_PIECE):
                    yield piece

    async def delete(self, tenant: str, sha256: str, is_used: Callable[[], Awaitable[bool]]) -> None:
        """Removes a content; one that is gone is no error.

        A replica may take the content for a new file in between. If its row is there before `is_used` looks, the
        content is put back here; if it comes later, that replica sees when it confirms that it is gone, and puts it
        back.
        """
        removed = f"{self._prefix}removed/{_folder_of(tenant)}/{sha256}/{secrets.token_hex(8)}"
        key = self.key(tenant, sha256)
        with told(self.where):
            if not await self.copied(key, removed):
                return
            await self.client.delete_object(Bucket=self.bucket, Key=key)
        if await is_used():
            await self._put_back(removed, key)
        await self.remove(removed)

    async def listed(self) -> Sequence[tuple[str, str]]:
        """Returns (tenant, hash) of all that is there."""
        found: list[tuple[str, str]] = []
        async for key, _ in self._keys("contents/"):
            folder, _, name = key.partition("/")
            if _HASH.fullmatch(name):
                found.append((_tenant_of(folder), name))
        return found

    async def tidy(self, is_used: Callable[[str, str], Awaitable[bool]]) -> None:
        """Removes drafts without a writer, and ends removals that were cut."""
        oldest = datetime.now(UTC) - ABANDONED
        async for key, changed in self._keys("drafts/"):
            if changed < oldest:
                await self.remove(f"{self._prefix}drafts/{key}")
        async for key, changed in self._keys("removed/"):
            folder, _, rest = key.partition("/")
            sha256 = rest.partition("/")[0]
            if _HASH.fullmatch(sha256) is None:
                continue  # somebody else's
            tenant, removed = _tenant_of(folder), f"{self._prefix}removed/{key}"
            if await is_used(tenant, sha256):
                await self._put_back(removed, self.key(tenant, sha256))
            # A young one may be of a removal that goes on elsewhere, and that has yet to put it back.
            if changed < oldest:
                await self.remove(removed)
        with told(self.where):
            pages = self.client.get_paginator("list_multipart_uploads")
            async for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self._prefix}drafts/"):
                for upload in page.get("Uploads", []):
                    if upload.get("Initiated", oldest) < oldest:
                        await self.client.abort_multipart_upload(
                            Bucket=self.bucket, Key=upload.get("Key", ""), UploadId=upload.get("UploadId", "")
                        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._stack.aclose()

    def key(self, tenant: str, sha256: str) -> str:
        """Returns where a content lies."""
        if _HASH.fullmatch(sha256) is None:
            raise ValueError(f"{sha256!r} is no SHA-256")
        return f"{self._prefix}contents/{_folder_of(tenant)}/{sha256}"

    async def has(self, key: str) -> bool:
        """Returns whether there is an object."""
        try:
            await self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if missing(error):
                return False
            raise
        return True

    async def copied(self, source: str, target: str) -> bool:
        """Copies an object within the store, whole or not at all; False when there is none."""
        try:
            await self.client.copy_object(
                Bucket=self.bucket, Key=target, CopySource={"Bucket": self.bucket, "Key": source}
            )
        except ClientError as error:
            # Some stores say that the source is invalid.
            if missing(error) or not await self.has(source):
                return False
            raise
        return True

    async def remove(self, key: str) -> None:
        """Removes an object."""
        with told(self.where):
            await self.client.delete_object(Bucket=self.bucket, Key=key)

    async def _put_back(self, removed: str, key: str) -> None:
        with told(self.where):
            if not await self.has(key):
                await self.copied(removed, key)

    async def _keys(self, below: str) -> AsyncIterator[tuple[str, datetime]]:
        """Yields what is below a folder of the prefix, and when it was written."""
        prefix = self._prefix + below
        with told(self.where):
            pages = self.client.get_paginator("list_objects_v2")
            async for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield entry.get("Key", "").removeprefix(prefix), entry.get("LastModified", datetime.now(UTC))


class S3Draft:
    """A content that is being written: what is small waits in memory, what is not goes to the store part by part."""

    def __init__(self, blobs: S3Blobs, key: str) -> None:
        """Sends nothing yet."""
        self._blobs = blobs
        self._key = key
        self._waiting = bytearray()
        self._upload_id = ""
        self._parts: list[CompletedPartTypeDef] = []
        self._is_object = False

    async def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._waiting += data
        while len(self._waiting) >= PART:
            await self._send(bytes(self._waiting[:PART]))
            del self._waiting[:PART]

    async def keep(self, tenant: str, sha256: str) -> None:
        """Makes what was written the content of a hash."""
        if self._upload_id and not self._is_object:
            if self._waiting:
                await self._send(bytes(self._waiting))
                self._waiting.clear()
            await self._complete()
        await self._put(self._blobs.key(tenant, sha256))

    async def confirm(self, tenant: str, sha256: str) -> None:
        """Sees that the content is there, now that it is known to be used; puts it back if a replica removed it."""
        key = self._blobs.key(tenant, sha256)
        with told(self._blobs.where):
            there = await self._blobs.has(key)
        if not there:
            await self._put(key)

    async def discard(self) -> None:
        """Removes the draft; what was kept stays. What the store does not remove now, `tidy` removes later."""
        try:
            with told(self._blobs.where):
                if self._is_object:
                    await self._blobs.remove(self._key)
                elif self._upload_id:
                    await self._blobs.client.abort_multipart_upload(
                        Bucket=self._blobs.bucket, Key=self._key, UploadId=self._upload_id
                    )
        except ArtifactStoreUnavailable as error:
            # A file that is kept is kept, and what kept one from being so is said already.
            _log.warning("draft_not_removed", key=self._key, reason=error.message)
        self._upload_id, self._is_object = "", False

    async def _put(self, key: str) -> None:
        with told(self._blobs.where):
            if not self._is_object:
                await self._blobs.client.put_object(Bucket=self._blobs.bucket, Key=key, Body=bytes(self._waiting))
            elif not await self._blobs.copied(self._key, key):
                raise FileNotFoundError(self._key)

    async def _send(self, data: bytes) -> None:
        client, bucket = self._blobs.client, self._blobs.bucket
        number = len(self._parts) + 1
        with told(self._blobs.where):
            if not self._upload_id:
                begun = await client.create_multipart_upload(Bucket=bucket, Key=self._key)
                self._upload_id = begun["UploadId"]
            sent = await client.upload_part(
                Bucket=bucket, Key=self._key, UploadId=self._upload_id, PartNumber=number, Body=data
            )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})

    async def _complete(self) -> None:
        with told(self._blobs.where):
            try:
                await self._blobs.client.complete_multipart_upload(
                    Bucket=self._blobs.bucket,
                    Key=self._key,
                    UploadId=self._upload_id,
                    MultipartUpload={"Parts": self._parts},
                )
            except ClientError as error:
                # A repeat of what the store had done, its answer being lost.
                if not missing(error) or not await self._blobs.has(self._key):
                    raise
        self._is_object = True


def where(settings: ArtifactSettings) -> str:
    """Returns where a store is, as it may be shown."""
    return f"{settings.url} at {settings.endpoint}" if settings.endpoint else settings.url


async def checked(settings: ArtifactSettings) -> str:
    """Opens the store of the settings and closes it; returns where it is.

    Raises:
        ArtifactStoreUnavailable: it cannot be used.
    """
    async with asyncio.timeout(60):
        blobs = await S3Blobs.open(settings)
        await blobs.close()
    return blobs.where


def _folder_of(tenant: str) -> str:
    return "=" + quote(tenant, safe="")


def _tenant_of(folder: str) -> str:
    return unquote(folder.removeprefix("="))
