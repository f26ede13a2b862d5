"""What waits for its shields and is in no event before: the input of a turn, results that are given for its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.v1 import step_pb2, turn_pb2
from turnwire.common.v1 import message_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def input_body(messages: Iterable[message_pb2.Message]) -> bytes:
    """Returns the input of a turn as its row keeps it."""
    return turn_pb2.Turn(input=messages).SerializeToString()


def held_input(body: bytes | None) -> list[message_pb2.Message]:
    """Returns the input that a row keeps."""
    return list(turn_pb2.Turn.FromString(body or b"").input)


def results_body(results: Mapping[str, message_pb2.ToolResult]) -> bytes:
    """Returns given results as the row of their turn keeps them."""
    executions = [step_pb2.ToolExecution(result=result) for result in results.values()]
    tools = step_pb2.ToolExecutionStep(executions=executions)
    return turn_pb2.Turn(steps=[step_pb2.Step(tool_execution=tools)]).SerializeToString()


def held_results(body: bytes | None) -> dict[str, message_pb2.ToolResult]:
    """Returns the given results that a row keeps, by call id."""
    steps = turn_pb2.Turn.FromString(body or b"").steps
    return {each.result.call_id: each.result for step in steps for each in step.tool_execution.executions}


def taken_apart(
    inputs: Iterable[turn_pb2.TurnInput], holds: Callable[[str], bool]
) -> tuple[list[turn_pb2.TurnInput], dict[str, message_pb2.ToolResult]]:
    """Returns answers as an event may tell them, and the results that wait, by call id.

    `holds` says of which tools results wait. The facts of a failure are no text that shields judge: of these tools none
    are taken.
    """
    told: list[turn_pb2.TurnInput] = []
    results: dict[str, message_pb2.ToolResult] = {}
    for given in inputs:
        kept = turn_pb2.TurnInput()
        kept.CopyFrom(given)
        result = _result_in(kept)
        if result is not None and holds(result.name):
            if result.HasField("failure"):
                result.failure.metadata.clear()
            if result.content or result.failure.message:
                waits = results[result.call_id] = message_pb2.ToolResult()
                waits.CopyFrom(result)
                result.Clear()
                result.call_id, result.name = waits.call_id, waits.name
        told.append(kept)
    return told, results


def _result_in(given: turn_pb2.TurnInput) -> message_pb2.ToolResult | None:
    if given.HasField("tool_result"):
        return given.tool_result
    provides = given.outcome_decision.choice == turn_pb2.OutcomeDecision.CHOICE_PROVIDE
    return given.outcome_decision.result if provides else None
