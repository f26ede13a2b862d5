"""Attachments of a call, as files with plain names."""

from __future__ import annotations

import mimetypes
import posixpath
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from turnwire.errors import DocumentRefused
from turnwire.tool_executor.artifacts import sniffed
from turnwire.tool_executor.artifacts.sniffing import HEAD
from turnwire.tool_executor.tools.port import File

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.common.v1 import message_pb2
    from turnwire.runtime.fetch import GuardedFetcher
    from turnwire.tool_executor.artifacts import Artifacts

MOST_BYTES = 64 * 1024 * 1024
"""All attachments of a call together."""
_FETCH_SECONDS = 60.0
_UNSAFE = re.compile(r"[^\w.() +-]+")
_LONGEST_NAME = 120


class Attachments:
    """Reads attachments of any kind."""

    def __init__(self, artifacts: Artifacts, fetcher: GuardedFetcher) -> None:
        """Finds artifacts in `artifacts` and gets URLs through `fetcher`."""
        self._artifacts = artifacts
        self._fetcher = fetcher

    async def read(self, tenant: str, attachments: Sequence[message_pb2.Attachment]) -> list[File]:
        """Returns the attachments as files; names that are there twice get a number.

        Raises:
            NotFound: there is no such artifact.
            DocumentRefused: they are too large, or a URL may not be fetched.
            TurnwireError: a URL cannot be fetched.
        """
        files: list[File] = []
        room = MOST_BYTES
        for attachment in attachments:
            file = await self._one(tenant, attachment, room)
            room -= len(file.data)
            if room < 0:
                raise DocumentRefused(
                    "The attachments",
                    f"they have more than the {MOST_BYTES} bytes that are taken",
                    limit=str(MOST_BYTES),
                )
            files.append(file)
        return _told_apart(files)

    async def _one(self, tenant: str, attachment: message_pb2.Attachment, room: int) -> File:
        name, mime_type = attachment.name, attachment.mime_type
        match attachment.WhichOneof("content"):
            case "text":
                data = attachment.text.encode()
                mime_type = mime_type or "text/plain"
            case "data":
                data = attachment.data
            case "artifact_id":
                artifact, data = await self._artifacts.content(tenant, attachment.artifact_id, most=room)
                name = name or artifact.name
                mime_type = mime_type or artifact.mime_type
            case _:
                fetched = await self._fetcher.fetch(attachment.url, max_bytes=max(room, 1), seconds=_FETCH_SECONDS)
                data = fetched.data
                name = name or posixpath.basename(unquote(urlsplit(attachment.url).path))
                mime_type = mime_type or fetched.mime_type
        mime_type = mime_type or sniffed(name, data[:HEAD])
        return File(plain_name(name) or _invented(mime_type), data, mime_type)


def plain_name(name: str) -> str:
    """Returns a name that means one file in any folder; empty when nothing is left of it."""
    last = re.split(r"[/\\]", name)[-1]
    kept = _UNSAFE.sub("_", last).strip(" ._")
    stem, dot, suffix = kept.rpartition(".")
    if len(kept) > _LONGEST_NAME and dot and len(suffix) < 16:
        return f"{stem[: _LONGEST_NAME - len(suffix) - 1]}.{suffix}"
    return kept[:_LONGEST_NAME]


def _invented(mime_type: str) -> str:
    return f"attachment{mimetypes.guess_extension(mime_type.partition(';')[0].strip()) or ''}"


def _told_apart(files: Sequence[File]) -> list[File]:
    names: set[str] = set()
    result: list[File] = []
    for file in files:
        name, number = file.name, 1
        while name in names:
            number += 1
            stem, dot, suffix = file.name.rpartition(".")
            name = f"{stem}-{number}.{suffix}" if dot and stem else f"{file.name}-{number}"
        names.add(name)
        result.append(File(name, file.data, file.mime_type))
    return result
