"""What a tool writes, of any length: short as it is, of long text its two ends, with all of it in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import message_pb2
from turnwire.errors import TurnwireError
from turnwire.tool_executor.v1 import artifact_service_pb2

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from turnwire.tool_executor.artifacts import Artifacts, Draft

_log = structlog.get_logger(__name__)
LONGEST = 48 * 1024
"""The longest text that stays as it is, in bytes; what is longer becomes an artifact."""
_HEAD = 16 * 1024
_TAIL = 8 * 1024
_BLOCK = 512 * 1024
"""So much is gathered for the file before it is written: output comes in small pieces."""
_MIME_TYPE = "text/plain"


class Written:
    """A text that grows. However long it becomes, a block of it and its two ends are in memory."""

    def __init__(
        self, artifacts: Artifacts, stack: AsyncExitStack, *, tenant: str, session_id: str, tool: str, call_id: str
    ) -> None:
        """A long text becomes a file of the session, named after the tool; a draft of it is open as long as `stack`."""
        self._artifacts = artifacts
        self._stack = stack
        self._tenant = tenant
        name = f"{tool}-output.txt"
        self._opened = artifact_service_pb2.OpenUpload(
            name=name, mime_type=_MIME_TYPE, session_id=session_id, metadata={"tool": tool, "call_id": call_id}
        )
        self._head = b""
        self._tail = b""
        self._waiting = bytearray()
        self._draft: Draft | None = None
        self._lost = False
        self.size = 0
        """How long it is so far, in bytes."""

    async def add(self, text: str) -> None:
        """Appends to it; halves of characters are replaced."""
        data = text.encode("utf-8", "replace")
        self.size += len(data)
        self._head += data[: _HEAD - len(self._head)]
        self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]
        self._waiting += data
        if len(self._waiting) >= _BLOCK or self._lost:
            await self._write()

    async def ended(self) -> tuple[str, list[message_pb2.Attachment]]:
        """Returns the text as a model reads it, and the file that has all of it where that is not all."""
        if self.size <= LONGEST:
            return self._waiting.decode(), []
        attachments: list[message_pb2.Attachment] = []
        await self._write()
        kept = await self._kept()
        where = "the rest could not be kept"
        if kept is not None:
            attachments.append(kept)
            where = f"all of it is in the attached file {kept.name}"
        head, tail = cut(self._head), self._tail.decode("utf-8", "ignore")
        left_out = self.size - len(head.encode()) - len(tail.encode())
        return f"{head}\n[… {left_out} bytes are left out here; {where} …]\n{tail}", attachments

    async def _write(self) -> None:
        if not self._lost:
            try:
                if self._draft is None:
                    self._draft = await self._stack.enter_async_context(self._artifacts.draft(self._opened.name))
                await self._draft.write(bytes(self._waiting))
            except (TurnwireError, OSError) as error:
                # What the tool has done counts, whether all of its words can be kept or not.
                self._lose(error)
        self._waiting.clear()

    async def _kept(self) -> message_pb2.Attachment | None:
        if self._lost or self._draft is None:
            return None
        try:
            artifact = await self._draft.keep(self._tenant, self._opened)
        except (TurnwireError, OSError) as error:
            self._lose(error)
            return None
        return message_pb2.Attachment(
            artifact_id=artifact.artifact_id, name=artifact.name, mime_type=artifact.mime_type
        )

    def _lose(self, error: Exception) -> None:
        _log.warning("output_not_kept", tool=self._opened.metadata["tool"], reason=str(error))
        self._lost = True


def cut(data: bytes) -> str:
    """Returns the text of bytes that may end within a character: without that one."""
    return data.decode("utf-8", "ignore")
