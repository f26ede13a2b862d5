"""Turns made by hand, for the tests of the agent service."""

from __future__ import annotations

from typing import Any

from turnwire.agent.log.writer import FORMAT, draft
from turnwire.agent.store.turns import TurnRow
from turnwire.agent.v1 import agent_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import generation_pb2, message_pb2

TURN = "turn_1"


def user(text: str) -> message_pb2.Message:
    """Returns what a user says."""
    return message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.ContentPart(text=text)])


def function(name: str, schema: str = "") -> agent_pb2.AgentTool:
    """Returns a function of the caller."""
    definition = generation_pb2.ToolDefinition(name=name, description=name, parameters_json_schema=schema)
    return agent_pb2.AgentTool(function=agent_pb2.FunctionTool(definition=definition))


def started(text: str = "hello") -> event_pb2.StepEvent:
    """Returns the first event of a turn."""
    payload = event_pb2.TurnStarted(session_id="sess_1", agent_id="agent_1", ordinal=1, input=[user(text)])
    return draft(TURN, "turn_started", payload)


def step_started(step_id: str, iteration: int = 1) -> event_pb2.StepEvent:
    """Returns the start of an inference step."""
    payload = event_pb2.StepStarted(
        type=step_pb2.STEP_TYPE_INFERENCE,
        iteration=iteration,
        inference=event_pb2.InferencePlan(model_id="m", provider_id="p"),
    )
    return draft(TURN, "step_started", payload, step_id)


def delta(
    step_id: str,
    offset: int,
    text: str,
    *,
    part: event_pb2.DeltaPart.ValueType = event_pb2.DELTA_PART_ANSWER,
    attempt: int = 1,
    call_id: str = "",
    tool_name: str = "",
) -> event_pb2.StepEvent:
    """Returns a piece of text."""
    payload = event_pb2.StepDelta(
        attempt=attempt, part=part, offset=offset, text=text, call_id=call_id, tool_name=tool_name
    )
    return draft(TURN, "step_delta", payload, step_id)


def inference_completed(step_id: str, *calls: message_pb2.ToolCall) -> event_pb2.StepEvent:
    """Returns the end of an inference step."""
    result = event_pb2.InferenceResult(
        stop_reason=message_pb2.STOP_REASON_END_OF_TURN,
        usage=generation_pb2.Usage(prompt_tokens=3, completion_tokens=2),
        tool_calls=calls,
    )
    return draft(TURN, "step_completed", event_pb2.StepCompleted(inference=result), step_id)


def completed(step_id: str) -> event_pb2.StepEvent:
    """Returns the end of a turn whose answer is the text of a step."""
    payload = event_pb2.TurnCompleted(
        output=message_pb2.Message(role=message_pb2.ROLE_ASSISTANT),
        output_step_id=step_id,
        usage=generation_pb2.Usage(prompt_tokens=3, completion_tokens=2, model_calls=1),
    )
    return draft(TURN, "turn_completed", payload)


def numbered(*events: event_pb2.StepEvent) -> list[event_pb2.StepEvent]:
    """Gives events their numbers, from 1."""
    for number, event in enumerate(events, start=1):
        event.first_sequence = event.sequence = number
    return list(events)


def row(owner: str, **other: Any) -> TurnRow:
    """Returns the row of a turn that runs, and has an owner; `other` are fields that are not as usual."""
    fields: dict[str, Any] = {
        "turn_id": TURN,
        "session_id": "sess_1",
        "ordinal": 1,
        "status": turn_pb2.TURN_STATUS_RUNNING,
        "request_digest": "",
        "config_digest": "",
        "owner": owner,
        "epoch": 1,
        "sequence_ceiling": 10,
        "disconnect_policy": 0,
        "expire_time": None,
        "metadata": None,
        "create_time": 0,
        "format": FORMAT,
    }
    return TurnRow(**fields | other)
