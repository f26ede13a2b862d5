"""Calls whose outcome was lost: the turn asks what to do about each, or the model is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.turns import TURN, function, started
from turnwire.agent.log.writer import draft
from turnwire.agent.turn import transcript
from turnwire.agent.turn.actions import Pause, RunInference, RunTools
from turnwire.agent.turn.config import pin
from turnwire.agent.turn.inputs import fresh_inputs
from turnwire.agent.turn.runner import cancelled, plan
from turnwire.agent.v1 import agent_pb2, event_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2
from turnwire.errors import InvalidArgument, TurnNotAwaitingInput
from turnwire.fold import TurnFold

if TYPE_CHECKING:
    from turnwire.agent.v1 import step_pb2

RETRY = turn_pb2.OutcomeDecision.CHOICE_RETRY
SKIP = turn_pb2.OutcomeDecision.CHOICE_SKIP
PROVIDE = turn_pb2.OutcomeDecision.CHOICE_PROVIDE


class _Turn:
    """A turn that has called `pay` as c1 and, if wanted, a function of the caller as c2."""

    def __init__(self, policy: int = 0, *, with_function: bool = False) -> None:
        pay = agent_pb2.RegisteredTool(tool_id="pay", definition=generation_pb2.ToolDefinition(name="pay"))
        self.config = pin(
            agent_pb2.AgentConfig(
                model="p/m",
                tools=[agent_pb2.AgentTool(registered=pay), function("now")],
                unknown_outcome_policy=policy,  # pyright: ignore[reportArgumentType] - the number of the enum
            )
        )
        self.fold = TurnFold(TURN)
        self.events: list[event_pb2.StepEvent] = []
        self.happen(started())
        calls = [message_pb2.ToolCall(call_id="c1", name="pay", model_call_id="m1")]
        if with_function:
            calls.append(message_pb2.ToolCall(call_id="c2", name="now"))
        answered = event_pb2.InferenceResult(stop_reason=message_pb2.STOP_REASON_END_OF_TURN, tool_calls=calls)
        completed = event_pb2.StepCompleted(inference=answered)
        self.happen(draft(TURN, "step_completed", completed, self.turn.steps[-1].step_id))

    def happen(self, *events: event_pb2.StepEvent) -> object:
        planned, self.action = plan(self.fold, self.config, events)
        self.events += planned
        return self.action

    @property
    def turn(self) -> turn_pb2.Turn:
        return self.fold.turn

    @property
    def executions(self) -> list[step_pb2.ToolExecution]:
        return list(self.turn.steps[1].tool_execution.executions)

    def result(self, call_id: str, content: str = "", *, lost: bool = False) -> object:
        result = message_pb2.ToolResult(call_id=call_id, name="pay", content=content)
        if lost:
            result.failure.reason = error_pb2.ERROR_REASON_OUTCOME_UNKNOWN
            result.failure.message = "not known"
        completed = event_pb2.ToolCallCompleted(result=result)
        return self.happen(draft(TURN, "tool_call_completed", completed, self.turn.steps[1].step_id))

    def decide(self, call_id: str, choice: turn_pb2.OutcomeDecision.Choice.ValueType, content: str = "") -> object:
        inputs = fresh_inputs(self.turn, [_decision(call_id, choice, content)])
        received = event_pb2.TurnInputReceived(request_id="r", inputs=inputs)
        return self.happen(draft(TURN, "turn_input_received", received))

    def told(self) -> list[tuple[str, str]]:
        """What the model reads of the results of its calls."""
        messages = transcript.present_messages(self.turn)
        transcript.check(messages)
        return [(each.call_id, each.parts[0].text) for each in messages if each.role == message_pb2.ROLE_TOOL]


def _decision(call_id: str, choice: turn_pb2.OutcomeDecision.Choice.ValueType, content: str = "") -> turn_pb2.TurnInput:
    decision = turn_pb2.OutcomeDecision(call_id=call_id, choice=choice)
    if choice == PROVIDE:
        decision.result.content = content
    return turn_pb2.TurnInput(outcome_decision=decision)


def test_a_lost_outcome_pauses_the_turn_for_a_decision():
    turn = _Turn()
    turn.result("c1", lost=True)

    (request,) = turn.turn.awaited_input.requests
    assert isinstance(turn.action, Pause)
    assert ("c1", turn_pb2.INPUT_KIND_OUTCOME_DECISION) == (request.call.call_id, request.kind)
    assert turn.turn.awaited_input.HasField("expire_time")


def test_the_model_is_told_where_the_agent_says_so():
    turn = _Turn(agent_pb2.UNKNOWN_OUTCOME_POLICY_TELL_MODEL)

    assert isinstance(turn.result("c1", lost=True), RunInference)
    assert [("c1", "Error: not known")] == turn.told()


def test_a_retry_is_a_new_call_whose_result_answers_the_first():
    turn = _Turn()
    turn.result("c1", lost=True)
    action = turn.decide("c1", RETRY)
    first, again = turn.executions
    still_lost = first.result.failure.reason
    turn.result(again.call.call_id, "paid")

    assert isinstance(action, RunTools)
    assert ("c1", "pay", "m1") == (again.call.retry_of, again.call.name, again.call.model_call_id)
    assert again.call.call_id.startswith("call_")
    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == still_lost
    assert isinstance(turn.action, RunInference)
    assert [("c1", "paid")] == turn.told()


def test_a_retry_that_is_lost_too_is_asked_about_in_turn():
    turn = _Turn()
    turn.result("c1", lost=True)
    turn.decide("c1", RETRY)
    second = turn.executions[1].call.call_id
    turn.result(second, lost=True)
    asked = [request.call.call_id for request in turn.turn.awaited_input.requests]
    turn.decide(second, PROVIDE, "paid by hand")

    assert [second] == asked
    assert isinstance(turn.action, RunInference)
    assert [("c1", "paid by hand")] == turn.told()


@pytest.mark.parametrize(
    ("choice", "told"), [(SKIP, "Error: not known"), (PROVIDE, "paid by hand")], ids=["skip", "provide"]
)
def test_a_decision_without_a_call_lets_the_turn_go_on(choice: turn_pb2.OutcomeDecision.Choice.ValueType, told: str):
    turn = _Turn()
    turn.result("c1", lost=True)

    assert isinstance(turn.decide("c1", choice, "paid by hand"), RunInference)
    assert [("c1", told)] == turn.told()
    assert [(True, "c1", "pay")] == [(each.decided, each.result.call_id, each.result.name) for each in turn.executions]


@pytest.mark.parametrize("choice", [RETRY, SKIP, PROVIDE])
def test_the_same_decision_again_is_no_error_and_another_one_is(choice: turn_pb2.OutcomeDecision.Choice.ValueType):
    turn = _Turn()
    turn.result("c1", lost=True)
    turn.decide("c1", choice, "paid by hand")
    number = len(turn.executions)

    assert [] == fresh_inputs(turn.turn, [_decision("c1", choice, "paid by hand")])
    for other in {RETRY, SKIP, PROVIDE} - {choice}:
        with pytest.raises(TurnNotAwaitingInput):
            fresh_inputs(turn.turn, [_decision("c1", other, "paid by hand")])
    assert number == len(turn.executions)


def test_a_decision_and_a_function_of_the_caller_are_asked_for_in_one_pause():
    turn = _Turn(with_function=True)
    turn.result("c1", lost=True)
    kinds = {each.call.call_id: each.kind for each in turn.turn.awaited_input.requests}
    half = turn.decide("c1", RETRY)
    given = turn_pb2.TurnInput(tool_result=message_pb2.ToolResult(call_id="c2", content="noon"))
    received = event_pb2.TurnInputReceived(inputs=fresh_inputs(turn.turn, [given]))
    whole = turn.happen(draft(TURN, "turn_input_received", received))

    assert {"c1": turn_pb2.INPUT_KIND_OUTCOME_DECISION, "c2": turn_pb2.INPUT_KIND_TOOL_RESULT} == kinds
    assert (Pause, RunTools) == (type(half), type(whole))


def test_an_answer_of_another_kind_is_refused():
    turn = _Turn()
    turn.result("c1", lost=True)

    with pytest.raises(InvalidArgument, match="waits for: outcome_decision"):
        fresh_inputs(turn.turn, [turn_pb2.TurnInput(tool_result=message_pb2.ToolResult(call_id="c1"))])


def test_a_turn_that_is_cancelled_in_doubt_says_that_the_outcome_is_not_known():
    turn = _Turn()
    turn.result("c1", lost=True)
    ended = cancelled(turn.turn, "enough")

    assert [("c1", turn_pb2.CancelledCall.OUTCOME_UNKNOWN)] == [
        (each.call_id, each.outcome) for each in ended.turn_cancelled.calls
    ]


def test_the_log_of_a_decided_turn_folds_to_the_same_state():
    turn = _Turn()
    turn.result("c1", lost=True)
    turn.decide("c1", RETRY)
    turn.result(turn.executions[1].call.call_id, "paid")
    again = TurnFold(TURN)
    for number, event in enumerate(turn.events, start=1):
        event.first_sequence = event.sequence = number
        again.apply(event)

    assert turn.turn == again.turn
