"""The loop of a turn as a function: `next_action(state) -> action`.

The state is the fold of the turn's boundary events and nothing else, so a turn goes on after a restart as it would
have gone on without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.store import clock
from turnwire.agent.turn import budget, calls
from turnwire.agent.turn.actions import Action, Pause, Record, RunInference, Stop
from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.fold import TERMINAL_STATUSES, fill_output
from turnwire.ids import new_id

if TYPE_CHECKING:
    from turnwire.agent.turn.config import TurnConfig


def next_action(turn: turn_pb2.Turn, config: TurnConfig) -> Action:
    """Returns what a turn does next. Pure, but for the ids and times of the events it announces."""
    if turn.status in TERMINAL_STATUSES:
        return Stop()
    if turn.status == turn_pb2.TURN_STATUS_AWAITING_INPUT:
        return Pause()
    if not turn.steps:
        return _start_inference(turn, config, 1)
    step = turn.steps[-1]
    match step.status:
        case step_pb2.STEP_STATUS_IN_PROGRESS:
            return _go_on(turn, config, step)
        case step_pb2.STEP_STATUS_COMPLETED:
            return _after(turn, config, step)
        case _:
            return _fail(turn, step.failure)


def _go_on(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    if step.type == step_pb2.STEP_TYPE_INFERENCE:
        return RunInference(step)
    return _execute(turn, config, step)


def _after(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    if step.type == step_pb2.STEP_TYPE_TOOL_EXECUTION:
        return _start_inference(turn, config, step.iteration + 1)
    inference = step.inference
    if not inference.tool_calls:
        return _complete(turn, step, inference.stop_reason)
    if step.iteration >= config.max_iterations:
        return _complete(turn, step, message_pb2.STOP_REASON_MAX_ITERATIONS)
    return _start_tools(turn, config, step)


def _start_inference(turn: turn_pb2.Turn, config: TurnConfig, iteration: int) -> Action:
    exhausted = budget.exhausted(turn, config.config.limits)
    if exhausted is not None:
        return _fail(turn, exhausted)
    plan = event_pb2.InferencePlan(
        model_id=config.model_id,
        provider_id=config.provider_id,
        reserved_tokens=budget.remaining_tokens(turn, config.config.limits),
    )
    started = event_pb2.StepStarted(
        type=step_pb2.STEP_TYPE_INFERENCE, iteration=iteration, trace_id=turn.trace_id, inference=plan
    )
    return Record((draft(turn.turn_id, "step_started", started, new_id("step")),))


def _start_tools(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    exhausted = budget.tool_calls_exhausted(turn, config.config.limits, len(step.inference.tool_calls))
    if exhausted is not None:
        return _fail(turn, exhausted)
    plan = event_pb2.ToolExecutionPlan(
        call_ids=[call.call_id for call in step.inference.tool_calls], inference_step_id=step.step_id
    )
    started = event_pb2.StepStarted(
        type=step_pb2.STEP_TYPE_TOOL_EXECUTION,
        iteration=step.iteration,
        trace_id=turn.trace_id,
        tool_execution=plan,
    )
    return Record((draft(turn.turn_id, "step_started", started, new_id("step")),))


def _execute(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    """Calls that cannot run are answered at once; the caller's functions are given to the caller."""
    events: list[event_pb2.StepEvent] = []
    requests: list[turn_pb2.InputRequest] = []
    for execution in step.tool_execution.executions:
        if execution.HasField("result"):
            continue
        refused = calls.refusal(execution.call, config)
        if refused is not None:
            events.append(
                draft(turn.turn_id, "tool_call_completed", event_pb2.ToolCallCompleted(result=refused), step.step_id)
            )
            continue
        if not execution.HasField("start_time"):
            started = event_pb2.ToolCallStarted(call_id=execution.call.call_id, by_caller=True)
            events.append(draft(turn.turn_id, "tool_call_started", started, step.step_id))
        requests.append(
            turn_pb2.InputRequest(call=execution.call, step_id=step.step_id, kind=turn_pb2.INPUT_KIND_TOOL_RESULT)
        )
    if requests:
        expire_time = clock.now_microseconds() + int(config.pause_seconds * 1_000_000)
        awaited = turn_pb2.AwaitedInput(requests=requests, expire_time=clock.timestamp(expire_time))
        events.append(draft(turn.turn_id, "turn_awaiting_input", event_pb2.TurnAwaitingInput(awaited_input=awaited)))
    elif not events:
        completed = event_pb2.StepCompleted(tool_execution=event_pb2.ToolExecutionResult())
        events.append(draft(turn.turn_id, "step_completed", completed, step.step_id))
    return Record(tuple(events))


def _complete(turn: turn_pb2.Turn, step: step_pb2.Step, reason: message_pb2.StopReason.ValueType) -> Action:
    output = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, stop_reason=reason)
    output.tool_calls.extend(step.inference.tool_calls)
    fill_output(output, step)
    completed = event_pb2.TurnCompleted(
        output=output,
        usage=turn.usage,
        step_ids=[each.step_id for each in turn.steps],
        output_step_id=step.step_id,
    )
    return Record((draft(turn.turn_id, "turn_completed", completed),))


def _fail(turn: turn_pb2.Turn, failure: error_pb2.Failure) -> Action:
    return Record((failed(turn, failure),))


def failed(turn: turn_pb2.Turn, failure: error_pb2.Failure) -> event_pb2.StepEvent:
    """Returns the event that ends a turn with a failure."""
    return draft(turn.turn_id, "turn_failed", event_pb2.TurnFailed(failure=failure, usage=turn.usage))
