"""The steps of a turn as the loop looks at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.common.v1 import shield_pb2
from turnwire.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnwire.agent.v1 import turn_pb2

_TYPES = {
    "inference": step_pb2.STEP_TYPE_INFERENCE,
    "tool_execution": step_pb2.STEP_TYPE_TOOL_EXECUTION,
    "shield_call": step_pb2.STEP_TYPE_SHIELD_CALL,
    "memory_retrieval": step_pb2.STEP_TYPE_MEMORY_RETRIEVAL,
}


def start_event(
    turn: turn_pb2.Turn,
    iteration: int = 0,
    *,
    inference: event_pb2.InferencePlan | None = None,
    tool_execution: event_pb2.ToolExecutionPlan | None = None,
    shield_call: event_pb2.ShieldCallPlan | None = None,
    memory_retrieval: event_pb2.MemoryRetrievalPlan | None = None,
) -> event_pb2.StepEvent:
    """Returns the start of a new step, with its one plan."""
    started = event_pb2.StepStarted(
        iteration=iteration,
        trace_id=turn.trace_id,
        inference=inference,
        tool_execution=tool_execution,
        shield_call=shield_call,
        memory_retrieval=memory_retrieval,
    )
    kind = started.WhichOneof("plan")
    assert kind is not None
    started.type = _TYPES[kind]
    return draft(turn.turn_id, "step_started", started, new_id("step"))


def is_nested(step: step_pb2.Step) -> bool:
    """True for the shields within another step: on what a model wrote, and on what tools answered."""
    return step.type == step_pb2.STEP_TYPE_SHIELD_CALL and step.shield_call.point != shield_pb2.SHIELD_POINT_INPUT


def main_step(turn: turn_pb2.Turn) -> step_pb2.Step | None:
    """Returns the step that the turn stands at: its last one that is not nested in another."""
    return next((step for step in reversed(turn.steps) if not is_nested(step)), None)


def open_steps(turn: turn_pb2.Turn) -> Iterator[step_pb2.Step]:
    """Yields the steps that run."""
    return (step for step in turn.steps if step.status == step_pb2.STEP_STATUS_IN_PROGRESS)


def blocking(turn: turn_pb2.Turn) -> shield_pb2.ShieldVerdict | None:
    """Returns the first verdict that lets nothing pass, or None."""
    for step in turn.steps:
        for verdict in step.shield_call.verdicts:
            if verdict.level == shield_pb2.VIOLATION_LEVEL_ERROR:
                return verdict
    return None


def retrieved(turn: turn_pb2.Turn) -> list[step_pb2.MemoryRetrievalStep]:
    """Returns what was looked up before the model answered."""
    return [step.memory_retrieval for step in turn.steps if step.type == step_pb2.STEP_TYPE_MEMORY_RETRIEVAL]
