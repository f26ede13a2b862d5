"""Attachments that are too large for an event: they are kept as artifacts, and the turn names them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import grpc

from turnwire.errors import from_rpc_error
from turnwire.runtime.failpoints import Boundary
from turnwire.tool_executor.v1 import artifact_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnwire.common.v1 import message_pb2
    from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub

MOST_INLINE = 8 * 1024
"""The largest attachment that stands in an event, in bytes."""
_PIECE = 512 * 1024
_SECONDS = 60.0
_UPLOAD = Boundary("agent.attachment_uploaded")


async def keep_large(
    stub: ArtifactServiceStub, messages: Sequence[message_pb2.Message], *, turn_id: str, session_id: str
) -> None:
    """Uploads what is large and puts its artifact in its place; a repeat for the same turn finds the first.

    Raises:
        Unavailable: the tool executor cannot be reached.
    """
    for index, message in enumerate(messages):
        for number, attachment in enumerate(message.attachments):
            content = attachment.text.encode() if attachment.WhichOneof("content") == "text" else attachment.data
            if len(content) <= MOST_INLINE:
                continue
            if attachment.WhichOneof("content") == "text" and not attachment.mime_type:
                attachment.mime_type = "text/plain"
            opened = artifact_service_pb2.OpenUpload(
                name=attachment.name or f"attachment-{index}-{number}",
                mime_type=attachment.mime_type,
                session_id=session_id,
                sha256=hashlib.sha256(content).hexdigest(),
                request_id=f"{turn_id}-{index}-{number}",
            )
            try:
                async with _UPLOAD:
                    response = await stub.UploadArtifact(_pieces(opened, content), timeout=_SECONDS)
            except grpc.RpcError as error:
                raise from_rpc_error(error, service="tool_executor") from error
            attachment.artifact_id = response.artifact.artifact_id


def _pieces(
    opened: artifact_service_pb2.OpenUpload, content: bytes
) -> Iterator[artifact_service_pb2.UploadArtifactRequest]:
    yield artifact_service_pb2.UploadArtifactRequest(open=opened)
    for start in range(0, len(content), _PIECE):
        yield artifact_service_pb2.UploadArtifactRequest(data=content[start : start + _PIECE])
