"""Answers to what a turn waits for: which of them are new, as they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.v1 import turn_pb2
from turnwire.common.v1 import error_pb2, shield_pb2
from turnwire.errors import InvalidArgument, TurnFinished, TurnNotAwaitingInput
from turnwire.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.v1 import step_pb2
    from turnwire.common.v1 import message_pb2

_WANTED = {
    turn_pb2.INPUT_KIND_TOOL_RESULT: "tool_result",
    turn_pb2.INPUT_KIND_APPROVAL: "approval",
    turn_pb2.INPUT_KIND_OUTCOME_DECISION: "outcome_decision",
    turn_pb2.INPUT_KIND_CREDENTIAL: "credential",
}


def fresh_inputs(turn: turn_pb2.Turn, inputs: Sequence[turn_pb2.TurnInput]) -> list[turn_pb2.TurnInput]:
    """Returns the inputs that answer an open question; those given before are left out.

    Raises:
        TurnFinished: the turn has ended.
        TurnNotAwaitingInput: an input answers nothing that is open.
        InvalidArgument: an input is of another kind than what is asked.
    """
    executions = {each.call.call_id: each for step in turn.steps for each in step.tool_execution.executions}
    wanted = {request.call.call_id: request for request in turn.awaited_input.requests}
    fresh: list[turn_pb2.TurnInput] = []
    for index, given in enumerate(inputs):
        kind = given.WhichOneof("input")
        call_id = getattr(given, kind).call_id if kind is not None else ""
        if call_id not in wanted:
            if call_id in executions and _given_before(turn, given, executions[call_id], list(executions.values())):
                continue
            if turn.HasField("end_time"):
                raise TurnFinished(turn.turn_id, turn_pb2.TurnStatus.Name(turn.status))
            raise TurnNotAwaitingInput(turn.turn_id, call_id)
        expected = _WANTED[wanted[call_id].kind]
        if kind != expected:
            raise InvalidArgument.one(f"inputs[{index}]", f"the call {call_id} waits for: {expected}")
        fresh.append(_kept(given, wanted[call_id].call.name))
    return fresh


def _kept(given: turn_pb2.TurnInput, name: str) -> turn_pb2.TurnInput:
    """An answer as it is kept: with the name of its tool, and with the id of the call that repeats another."""
    kept = turn_pb2.TurnInput()
    kept.CopyFrom(given)
    if kept.HasField("tool_result"):
        kept.tool_result.name = name
    elif kept.HasField("outcome_decision"):
        decision = kept.outcome_decision
        decision.retry_call_id = new_id("call") if decision.choice == turn_pb2.OutcomeDecision.CHOICE_RETRY else ""
        if decision.choice == turn_pb2.OutcomeDecision.CHOICE_PROVIDE:
            decision.result.call_id, decision.result.name = decision.call_id, name
    return kept


def _given_before(
    turn: turn_pb2.Turn,
    given: turn_pb2.TurnInput,
    execution: step_pb2.ToolExecution,
    executions: Sequence[step_pb2.ToolExecution],
) -> bool:
    """True when a call was answered in just this way.

    What was given is not known where shields have passed it: then any result counts as the one that was given.
    """
    screened = execution.held or _is_screened(turn, execution)
    if given.HasField("tool_result"):
        if screened:
            return execution.by_caller
        return execution.HasField("result") and execution.result == _kept(given, execution.call.name).tool_result
    decision = given.outcome_decision
    if not given.HasField("outcome_decision") or not execution.decided:
        return False
    repeated = any(each.call.retry_of == decision.call_id for each in executions)
    match decision.choice:
        case turn_pb2.OutcomeDecision.CHOICE_RETRY:
            return repeated
        case turn_pb2.OutcomeDecision.CHOICE_PROVIDE:
            provided = _kept(given, execution.call.name).outcome_decision.result
            if screened and (execution.held or not is_unknown(execution.result)):
                return not repeated
            return not repeated and execution.result == provided
        case _:
            return not repeated and not execution.held and is_unknown(execution.result)


def _is_screened(turn: turn_pb2.Turn, execution: step_pb2.ToolExecution) -> bool:
    return any(
        step.shield_call.point == shield_pb2.SHIELD_POINT_TOOL_RESULT
        and step.shield_call.call_id == execution.call.call_id
        for step in turn.steps
    )


def is_unknown(result: message_pb2.ToolResult) -> bool:
    """True for the result of a call whose outcome was lost."""
    return result.failure.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN
