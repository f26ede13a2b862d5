"""The limits of a turn."""

from __future__ import annotations

from turnwire.agent.store import clock
from turnwire.agent.turn.steps import is_nested
from turnwire.agent.v1 import agent_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2


def exhausted(turn: turn_pb2.Turn, limits: agent_pb2.TurnLimits) -> error_pb2.Failure | None:
    """Returns why a turn may not call its model again, or None."""
    used_tokens = turn.usage.prompt_tokens + turn.usage.completion_tokens
    if limits.HasField("total_tokens") and used_tokens >= limits.total_tokens:
        return _failure("total_tokens", used_tokens, limits.total_tokens)
    if limits.HasField("model_calls") and turn.usage.model_calls >= limits.model_calls:
        return _failure("model_calls", turn.usage.model_calls, limits.model_calls)
    return None


def tool_calls_exhausted(turn: turn_pb2.Turn, limits: agent_pb2.TurnLimits, further: int) -> error_pb2.Failure | None:
    """Returns why a turn may not make further tool calls, or None."""
    used = sum(
        len(step.tool_execution.executions) for step in turn.steps if step.type == step_pb2.STEP_TYPE_TOOL_EXECUTION
    )
    if limits.HasField("tool_calls") and used + further > limits.tool_calls:
        return _failure("tool_calls", used + further, limits.tool_calls)
    return None


def remaining_tokens(turn: turn_pb2.Turn, limits: agent_pb2.TurnLimits) -> int:
    """Returns the tokens a turn has left; 0 when it has no such limit."""
    if not limits.HasField("total_tokens"):
        return 0
    return max(0, limits.total_tokens - turn.usage.prompt_tokens - turn.usage.completion_tokens)


def remaining_seconds(turn: turn_pb2.Turn, limits: agent_pb2.TurnLimits) -> float | None:
    """Returns the active time that a turn has left; None when it has no such limit.

    Counted is the time between the starts and the ends of what services work on, so that it is the same after a
    restart. Functions of the caller run in a pause, and that is not counted.
    """
    if not limits.HasField("active_time"):
        return None
    used = sum(_microseconds(part) for step in turn.steps for part in _worked_on(step))
    return limits.active_time.ToTimedelta().total_seconds() - used / 1_000_000


def _worked_on(step: step_pb2.Step) -> list[step_pb2.Step | step_pb2.ToolExecution]:
    """What of a step counts: not shields within another one, and of parallel calls of tools the longest."""
    if is_nested(step):
        return []
    if step.type != step_pb2.STEP_TYPE_TOOL_EXECUTION:
        return [step]
    ours = [each for each in step.tool_execution.executions if each.HasField("start_time") and not each.by_caller]
    return [max(ours, key=_microseconds)] if ours else []


def _microseconds(part: step_pb2.Step | step_pb2.ToolExecution) -> int:
    end = clock.microseconds(part.end_time) if part.HasField("end_time") else clock.now_microseconds()
    return end - clock.microseconds(part.start_time)


def active_time_exhausted(limits: agent_pb2.TurnLimits) -> error_pb2.Failure:
    """Returns the failure of a turn that ran for too long."""
    seconds = f"{limits.active_time.ToTimedelta().total_seconds():g} s"
    return _failure("active_time", seconds, seconds)


def _failure(limit: str, used: object, allowed: object) -> error_pb2.Failure:
    return error_pb2.Failure(
        reason=error_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        message=f"The turn reached its limit {limit}: {used} of {allowed}. Raise `limits.{limit}` of the agent.",
        metadata={"limit": limit, "used": str(used)},
    )
