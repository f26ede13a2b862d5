"""Results of tools as a model reads them: safe text, bounded, with all of a long one as an artifact."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.tool_executor.written import Written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnwire.errors import TurnwireError
    from turnwire.tool_executor.artifacts import Artifacts

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
    async with AsyncExitStack() as stack:
        written = Written(
            artifacts, stack, tenant=tenant, session_id=session_id, tool=result.name, call_id=result.call_id
        )
        await written.add(result.content)
        result.content, kept = await written.ended()
        result.attachments.extend(kept)
