"""Tool calls of a model that cannot run, and what the model is told instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.turn.config import argument_problem, definition_of
from turnwire.agent.turn.inputs import is_unknown
from turnwire.common.v1 import error_pb2, message_pb2

if TYPE_CHECKING:
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.agent.v1 import step_pb2


def refusal(call: message_pb2.ToolCall, config: TurnConfig) -> message_pb2.ToolResult | None:
    """Returns the result of a call that is refused before it is dispatched, or None when it may run."""
    tool = config.tool(call.name)
    if tool is None:
        available = ", ".join(sorted(config.tools)) or "none"
        return failed_result(
            call,
            error_pb2.ERROR_REASON_UNKNOWN_TOOL,
            f"There is no tool {call.name!r}. Tools: {available}.",
            {"tool": call.name, "available": available},
        )
    if call.parse_status == message_pb2.TOOL_CALL_PARSE_STATUS_FAILED:
        path, problem = "$", "what was written is no JSON object, or was cut"
    else:
        found = argument_problem(definition_of(tool), call.arguments_json)
        if found is None:
            return None
        path, problem = found
    return failed_result(
        call,
        error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS,
        f"The arguments of {call.name} do not fit its schema at {path}: {problem}. Call it again with other arguments.",
        {"tool": call.name, "path": path},
    )


def is_callers(call: message_pb2.ToolCall, config: TurnConfig) -> bool:
    """True when the caller of the turn runs the call."""
    tool = config.tool(call.name)
    return tool is not None and tool.WhichOneof("tool") == "function"


def in_doubt(step: step_pb2.Step) -> list[step_pb2.ToolExecution]:
    """Returns the calls of a step whose outcome was lost, and about which nobody has decided."""
    return [
        execution
        for execution in step.tool_execution.executions
        if is_unknown(execution.result) and not execution.decided and not execution.by_caller
    ]


def failed_result(
    call: message_pb2.ToolCall, reason: error_pb2.ErrorReason.ValueType, message: str, metadata: dict[str, str]
) -> message_pb2.ToolResult:
    """Returns the result of a call that failed."""
    failure = error_pb2.Failure(reason=reason, message=message, metadata=metadata)
    return message_pb2.ToolResult(call_id=call.call_id, name=call.name, failure=failure)
