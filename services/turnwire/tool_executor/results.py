"""Results of tools as a model reads them: safe text, bounded, with the rest of a long one as an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import TurnwireError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnwire.tool_executor.artifacts import Artifacts

_log = structlog.get_logger(__name__)
LONGEST = 48 * 1024
"""The longest content of a result, in bytes; what is longer becomes an artifact."""
_HEAD = 16 * 1024
_TAIL = 8 * 1024
_LONGEST_MESSAGE = 4000


def failed(
    call_id: str,
    tool_id: str,
    reason: error_pb2.ErrorReason.ValueType,
    message: str,
    metadata: Mapping[str, str] | None = None,
    *,
    retryable: bool = False,
) -> message_pb2.ToolResult:
    """Returns the result of a call that failed."""
    facts = {"tool": tool_id, "call_id": call_id, **(metadata or {})}
    failure = error_pb2.Failure(
        reason=reason,
        message=clean(message)[:_LONGEST_MESSAGE],
        retryable=retryable,
        metadata={key: value for key, value in facts.items() if value},
    )
    return message_pb2.ToolResult(call_id=call_id, name=tool_id, failure=failure)


def failed_by(call_id: str, tool_id: str, error: TurnwireError) -> message_pb2.ToolResult:
    """Returns the result of a call that failed with an error."""
    return failed(call_id, tool_id, error.reason, error.message, error.metadata, retryable=error.retryable)


def clean(text: str) -> str:
    """Returns a text that can travel: halves of characters are replaced."""
    return text.encode("utf-8", "replace").decode()


async def fit(result: message_pb2.ToolResult, artifacts: Artifacts, *, tenant: str, session_id: str) -> None:
    """Bounds the content of a result; all of a long one becomes an artifact that the result names."""
    data = result.content.encode()
    if len(data) <= LONGEST:
        return
    name = f"{result.name}-output.txt"
    try:
        artifact = await artifacts.keep(
            tenant,
            name,
            data,
            mime_type="text/plain",
            session_id=session_id,
            metadata={"tool": result.name, "call_id": result.call_id},
        )
    except TurnwireError as error:
        _log.warning("output_not_kept", tool=result.name, reason=error.message)
        where = "the rest could not be kept"
    else:
        result.attachments.add(artifact_id=artifact.artifact_id, name=name, mime_type=artifact.mime_type)
        where = f"all of it is in the attached file {name}"
    head, tail = cut(data[:_HEAD]), data[-_TAIL:].decode("utf-8", "ignore")
    left_out = len(data) - len(head.encode()) - len(tail.encode())
    result.content = f"{head}\n[… {left_out} bytes are left out here; {where} …]\n{tail}"


def cut(data: bytes) -> str:
    """Returns the text of bytes that may end within a character: without that one."""
    return data.decode("utf-8", "ignore")
