"""What comes next in a turn, as a function of its state."""

from __future__ import annotations

import pytest

from tests.agent.turns import TURN, function, started
from turnwire.agent.log.writer import draft
from turnwire.agent.turn.actions import Pause, RunInference, Stop
from turnwire.agent.turn.config import TurnConfig, pin
from turnwire.agent.turn.runner import plan
from turnwire.agent.v1 import agent_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2
from turnwire.fold import TurnFold

SCHEMA = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}'


def _config(**fields: object) -> TurnConfig:
    config = agent_pb2.AgentConfig(model="p/m", tools=[function("add", SCHEMA), function("now")], **fields)  # pyright: ignore[reportArgumentType]
    return pin(config)


class _Turn:
    """A turn that is driven by hand."""

    def __init__(self, config: TurnConfig) -> None:
        self.config = config
        self.fold = TurnFold(TURN)
        self.kinds: list[str] = []
        self.action = self.happen(started())

    def happen(self, *events: event_pb2.StepEvent) -> object:
        planned, self.action = plan(self.fold, self.config, events)
        self.kinds += [str(event.WhichOneof("payload")) for event in planned]
        return self.action

    @property
    def turn(self) -> turn_pb2.Turn:
        return self.fold.turn

    def answer(self, *calls: tuple[str, str, str], failed: bool = False) -> object:
        """The model answers: with text, or with calls (id, name, arguments)."""
        step = self.turn.steps[-1]
        status = message_pb2.TOOL_CALL_PARSE_STATUS_FAILED if failed else message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED
        events: list[event_pb2.StepEvent] = []
        for call_id, name, arguments in calls:
            delta = event_pb2.StepDelta(
                attempt=step.attempt,
                part=event_pb2.DELTA_PART_ARGUMENTS,
                call_id=call_id,
                tool_name=name,
                text=arguments,
                parse_status=status,
            )
            event = draft(TURN, "step_delta", delta, step.step_id)
            event.first_sequence = event.sequence = self.fold.last_sequence + 1
            self.fold.apply(event)
            events.append(event)
        result = event_pb2.InferenceResult(
            stop_reason=message_pb2.STOP_REASON_END_OF_TURN,
            usage=generation_pb2.Usage(prompt_tokens=10, completion_tokens=5),
            tool_calls=[
                message_pb2.ToolCall(call_id=call_id, name=name, parse_status=status) for call_id, name, _ in calls
            ],
        )
        completed = event_pb2.StepCompleted(inference=result)
        return self.happen(draft(TURN, "step_completed", completed, step.step_id))

    def submit(self, call_id: str, content: str) -> object:
        given = turn_pb2.TurnInput(tool_result=message_pb2.ToolResult(call_id=call_id, content=content))
        received = event_pb2.TurnInputReceived(request_id="r", inputs=[given])
        return self.happen(draft(TURN, "turn_input_received", received))


def test_acceptance_and_the_first_step_are_one_commit():
    turn = _Turn(_config())

    assert ["turn_started", "step_started"] == turn.kinds
    assert isinstance(turn.action, RunInference)


def test_an_answer_without_calls_ends_the_turn():
    turn = _Turn(_config())
    action = turn.answer()

    assert isinstance(action, Stop)
    assert turn_pb2.TURN_STATUS_COMPLETED == turn.turn.status
    assert ["step_completed", "turn_completed"] == turn.kinds[-2:]


def test_the_callers_functions_pause_the_turn_and_their_results_continue_it():
    turn = _Turn(_config())
    action = turn.answer(("call_1", "add", '{"n":1}'), ("call_2", "now", "{}"))
    assert isinstance(action, Pause)
    assert ["call_1", "call_2"] == [request.call.call_id for request in turn.turn.awaited_input.requests]

    assert isinstance(turn.submit("call_2", "noon"), Pause)
    assert ["call_1"] == [request.call.call_id for request in turn.turn.awaited_input.requests]

    assert isinstance(turn.submit("call_1", "2"), RunInference)
    assert [1, 1, 2] == [step.iteration for step in turn.turn.steps]
    executions = turn.turn.steps[1].tool_execution.executions
    assert [("call_1", "2"), ("call_2", "noon")] == [(each.call.call_id, each.result.content) for each in executions]


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("add", '{"n":"one"}', error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS),
        ("add", "[1]", error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS),
        ("add", '{"n":', error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS),
        ("subtract", "{}", error_pb2.ERROR_REASON_UNKNOWN_TOOL),
    ],
)
def test_a_call_that_cannot_run_is_answered_and_the_model_reads_why(name: str, arguments: str, reason: int):
    turn = _Turn(_config())
    action = turn.answer(("call_1", name, arguments))

    assert isinstance(action, RunInference)
    assert reason == turn.turn.steps[1].tool_execution.executions[0].result.failure.reason


def test_a_call_that_was_not_understood_is_answered():
    turn = _Turn(_config())
    turn.answer(("call_1", "now", "{"), failed=True)

    failure = turn.turn.steps[1].tool_execution.executions[0].result.failure
    assert error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS == failure.reason


def test_the_last_iteration_ends_the_turn_with_its_calls_open():
    turn = _Turn(_config(max_iterations=2))
    turn.answer(("call_1", "subtract", "{}"))
    action = turn.answer(("call_2", "now", "{}"))

    assert isinstance(action, Stop)
    assert message_pb2.STOP_REASON_MAX_ITERATIONS == turn.turn.output.stop_reason
    assert ["call_2"] == [call.call_id for call in turn.turn.output.tool_calls]


@pytest.mark.parametrize("limit", ["total_tokens", "model_calls", "tool_calls"])
def test_a_limit_that_is_reached_fails_the_turn(limit: str):
    limits = agent_pb2.TurnLimits()
    setattr(limits, limit, 1)
    turn = _Turn(_config(limits=limits))
    turn.answer(("call_1", "subtract", "{}"), ("call_2", "subtract", "{}"))

    assert turn_pb2.TURN_STATUS_FAILED == turn.turn.status
    assert error_pb2.ERROR_REASON_BUDGET_EXHAUSTED == turn.turn.failure.reason
    assert limit == turn.turn.failure.metadata["limit"]


def test_a_failed_step_fails_the_turn():
    turn = _Turn(_config())
    failure = error_pb2.Failure(reason=error_pb2.ERROR_REASON_PROVIDER_ERROR, message="broken")
    step_id = turn.turn.steps[0].step_id
    action = turn.happen(draft(TURN, "step_failed", event_pb2.StepFailed(failure=failure), step_id))

    assert isinstance(action, Stop)
    assert failure == turn.turn.failure


def test_a_restarted_step_runs_again_under_its_id():
    turn = _Turn(_config())
    step_id = turn.turn.steps[0].step_id
    action = turn.happen(draft(TURN, "step_restarted", event_pb2.StepRestarted(attempt=2), step_id))

    assert isinstance(action, RunInference)
    assert (step_id, 2) == (action.step.step_id, action.step.attempt)
    assert step_pb2.STEP_STATUS_IN_PROGRESS == action.step.status
