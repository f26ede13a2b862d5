"""What a model is asked: every field of an agent's configuration, and the conversation in order."""

from __future__ import annotations

from typing import cast

import pytest

from tests.agent.turns import function, user
from turnwire.agent.turn import transcript
from turnwire.agent.turn.config import argument_problem, overridden, pin
from turnwire.agent.turn.inference import InferenceStep
from turnwire.agent.v1 import agent_pb2, step_pb2, turn_pb2
from turnwire.agent.validation import check_config
from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.errors import InvalidArgument
from turnwire.inference.v1 import inference_service_pb2

MODE = generation_pb2.ToolChoice


def _request(
    config: agent_pb2.AgentConfig, *, iteration: int = 1, history: tuple[message_pb2.Message, ...] = ()
) -> inference_service_pb2.ChatCompletionRequest:
    nothing = cast("object", None)
    step = InferenceStep(nothing, nothing, pin(config), nothing, timeout_seconds=1.0)  # pyright: ignore[reportArgumentType] - none is used
    turn = turn_pb2.Turn(turn_id="turn_1", input=[user("now")])
    return step.request(turn, step_pb2.Step(iteration=iteration), history)


def _texts(request: inference_service_pb2.ChatCompletionRequest) -> list[tuple[int, str]]:
    return [(message.role, "".join(part.text for part in message.parts)) for message in request.messages]


def test_instructions_history_and_input_stand_in_order():
    answer = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, parts=[message_pb2.ContentPart(text="hi")])
    request = _request(agent_pb2.AgentConfig(model="p/m", instructions="be kind"), history=(user("hello"), answer))

    expected = [
        (message_pb2.ROLE_SYSTEM, "be kind"),
        (message_pb2.ROLE_USER, "hello"),
        (message_pb2.ROLE_ASSISTANT, "hi"),
        (message_pb2.ROLE_USER, "now"),
    ]
    assert expected == _texts(request)


@pytest.mark.parametrize(
    "sampling",
    [
        generation_pb2.SamplingParameters(greedy=generation_pb2.GreedySampling()),
        generation_pb2.SamplingParameters(top_p=generation_pb2.TopPSampling(temperature=0.7, top_p=0.9)),
        generation_pb2.SamplingParameters(top_k=generation_pb2.TopKSampling(top_k=40, temperature=0.7)),
        generation_pb2.SamplingParameters(max_tokens=7, repetition_penalty=1.1, seed=3, stop_sequences=["x"]),
    ],
)
def test_sampling_parameters_reach_the_model(sampling: generation_pb2.SamplingParameters):
    request = _request(agent_pb2.AgentConfig(model="p/m", sampling_parameters=sampling))

    assert sampling == request.sampling_parameters


def test_the_model_the_tools_and_their_format_reach_the_model():
    config = agent_pb2.AgentConfig(
        model="p/m",
        tools=[function("add"), function("now")],
        tool_prompt_format=generation_pb2.TOOL_PROMPT_FORMAT_PYTHON_LIST,
    )
    request = _request(config)

    assert ("p/m", ["add", "now"]) == (request.model, [tool.name for tool in request.tools])
    assert generation_pb2.TOOL_PROMPT_FORMAT_PYTHON_LIST == request.tool_prompt_format


@pytest.mark.parametrize(
    ("mode", "iteration", "expected"),
    [
        (MODE.MODE_REQUIRED, 1, MODE.MODE_REQUIRED),
        (MODE.MODE_REQUIRED, 2, MODE.MODE_AUTO),
        (MODE.MODE_NAMED, 1, MODE.MODE_NAMED),
        (MODE.MODE_NAMED, 2, MODE.MODE_AUTO),
        (MODE.MODE_NONE, 2, MODE.MODE_NONE),
    ],
)
def test_a_forced_choice_holds_for_the_first_inference(
    mode: generation_pb2.ToolChoice.Mode.ValueType, iteration: int, expected: int
):
    config = agent_pb2.AgentConfig(model="p/m", tools=[function("add")], tool_choice=MODE(mode=mode, name="add"))

    assert expected == _request(config, iteration=iteration).tool_choice.mode


@pytest.mark.parametrize(
    ("most", "iteration", "expected"), [(2, 1, MODE.MODE_AUTO), (2, 2, MODE.MODE_NONE), (1, 1, MODE.MODE_AUTO)]
)
def test_the_last_iteration_is_for_the_answer(most: int, iteration: int, expected: MODE.Mode.ValueType):
    config = agent_pb2.AgentConfig(
        model="p/m", tools=[function("add")], tool_choice=MODE(mode=MODE.MODE_AUTO), max_iterations=most
    )

    assert expected == _request(config, iteration=iteration).tool_choice.mode


def test_a_response_format_is_left_out_where_a_call_is_forced():
    config = agent_pb2.AgentConfig(
        model="p/m",
        tools=[function("add")],
        tool_choice=MODE(mode=MODE.MODE_REQUIRED),
        response_format=generation_pb2.ResponseFormat(json_schema="{}"),
    )

    assert not _request(config).HasField("response_format")
    assert "{}" == _request(config, iteration=2).response_format.json_schema


def test_overrides_replace_the_fields_that_are_set_and_those_of_the_mask():
    config = agent_pb2.AgentConfig(model="p/m", instructions="old", tools=[function("add")], max_iterations=3)
    changed = overridden(config, turn_pb2.TurnOverrides(config=agent_pb2.AgentConfig(instructions="new")))
    assert ("new", 3, 1) == (changed.instructions, changed.max_iterations, len(changed.tools))

    overrides = turn_pb2.TurnOverrides(config=agent_pb2.AgentConfig(instructions="new", model="q/n"))
    overrides.mask.paths.extend(["tools", "model"])
    changed = overridden(config, overrides)
    assert ("q/n", "old", 0) == (changed.model, changed.instructions, len(changed.tools))


def test_arguments_are_held_against_the_schema():
    definition = generation_pb2.ToolDefinition(
        name="add", parameters_json_schema='{"type":"object","properties":{"n":{"type":"integer"}}}'
    )

    assert argument_problem(definition, '{"n":1}') is None
    assert ("$.n", "'x' is not of type 'integer'") == argument_problem(definition, '{"n":"x"}')
    assert ("$", "the arguments are nested too deeply") == argument_problem(definition, '{"n":' + "[" * 100_000)


def _past(status: turn_pb2.TurnStatus.ValueType, *steps: step_pb2.Step) -> turn_pb2.Turn:
    return turn_pb2.Turn(status=status, input=[user("q")], steps=steps)


def _inference(text: str, *calls: str, done: bool = True) -> step_pb2.Step:
    inference = step_pb2.InferenceStep(
        text=text, tool_calls=[message_pb2.ToolCall(call_id=call, name="f") for call in calls]
    )
    status = step_pb2.STEP_STATUS_COMPLETED if done else step_pb2.STEP_STATUS_CANCELLED
    return step_pb2.Step(type=step_pb2.STEP_TYPE_INFERENCE, status=status, inference=inference)


def _tools(*results: str) -> step_pb2.Step:
    executions = [
        step_pb2.ToolExecution(
            call=message_pb2.ToolCall(call_id=call), result=message_pb2.ToolResult(call_id=call, content=f"r-{call}")
        )
        for call in results
    ]
    return step_pb2.Step(
        type=step_pb2.STEP_TYPE_TOOL_EXECUTION,
        status=step_pb2.STEP_STATUS_COMPLETED,
        tool_execution=step_pb2.ToolExecutionStep(executions=executions),
    )


def test_history_keeps_calls_and_results_in_order():
    turn = _past(turn_pb2.TURN_STATUS_COMPLETED, _inference("", "a", "b"), _tools("a", "b"), _inference("done"))
    messages = transcript.past_messages(turn)
    transcript.check(messages)

    assert ["q", "", "r-a", "r-b", "done"] == ["".join(part.text for part in each.parts) for each in messages]


def test_a_call_without_a_result_is_not_shown_to_a_model():
    turn = _past(turn_pb2.TURN_STATUS_COMPLETED, _inference("thinking", "a"))
    messages = transcript.past_messages(turn)
    transcript.check(messages)

    assert not messages[-1].tool_calls


def test_a_cancelled_turn_leaves_what_was_seen_and_a_failed_one_nothing():
    cancelled = _past(turn_pb2.TURN_STATUS_CANCELLED, _inference("half", done=False))
    failed = _past(turn_pb2.TURN_STATUS_FAILED, _inference("half", done=False))

    assert ["q", "half"] == [each.parts[0].text for each in transcript.past_messages(cancelled)]
    assert [] == transcript.past_messages(failed)


def test_a_transcript_that_no_server_would_take_is_a_defect():
    call = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, tool_calls=[message_pb2.ToolCall(call_id="a")])

    with pytest.raises(AssertionError, match="has no result"):
        transcript.check([call, user("next")])


def test_a_least_score_that_is_no_number_is_refused_with_the_agent():
    retrieval = agent_pb2.RetrievalConfig(bank_ids=["zoo"], min_score=float("nan"))
    config = agent_pb2.AgentConfig(model="p/m", retrieval=retrieval)

    with pytest.raises(InvalidArgument, match=r"config\.retrieval\.min_score is no number"):
        check_config(config)

    config.retrieval.min_score = 0.35
    check_config(config)
