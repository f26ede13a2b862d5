"""The loop of a turn as a function: `next_action(state) -> action`.

The state is the fold of the turn's boundary events and nothing else, so a turn goes on after a restart as it would
have gone on without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.store import clock
from turnwire.agent.turn import budget, calls
from turnwire.agent.turn.actions import (
    Action,
    Pause,
    Record,
    RunInference,
    RunRetrieval,
    RunShields,
    RunTools,
    Stop,
)
from turnwire.agent.turn.answer import answered, refused
from turnwire.agent.turn.steps import blocking, main_step, start_event
from turnwire.agent.v1 import event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2, shield_pb2
from turnwire.fold import TERMINAL_STATUSES

if TYPE_CHECKING:
    from turnwire.agent.turn.config import TurnConfig


def next_action(turn: turn_pb2.Turn, config: TurnConfig) -> Action:
    """Returns what a turn does next. Pure, but for the ids and times of the events it announces."""
    if turn.status in TERMINAL_STATUSES:
        return Stop()
    if turn.status in {turn_pb2.TURN_STATUS_AWAITING_INPUT, turn_pb2.TURN_STATUS_QUEUED}:
        return Pause()
    step = main_step(turn)
    if step is None:
        return _begin(turn, config)
    match step.status:
        case step_pb2.STEP_STATUS_IN_PROGRESS:
            return _go_on(turn, config, step)
        case step_pb2.STEP_STATUS_COMPLETED:
            return _after(turn, config, step)
        case _:
            return Record((failed(turn, step.failure),))


def _begin(turn: turn_pb2.Turn, config: TurnConfig) -> Action:
    if not config.config.input_shields:
        return _retrieve_or_infer(turn, config)
    plan = event_pb2.ShieldCallPlan(point=shield_pb2.SHIELD_POINT_INPUT, shield_ids=config.config.input_shields)
    return Record((start_event(turn, shield_call=plan),))


def _go_on(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    match step.type:
        case step_pb2.STEP_TYPE_INFERENCE:
            return RunInference(step)
        case step_pb2.STEP_TYPE_SHIELD_CALL:
            return RunShields(step)
        case step_pb2.STEP_TYPE_MEMORY_RETRIEVAL:
            return RunRetrieval(step)
        case _:
            return _execute(turn, config, step)


def _after(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    verdict = blocking(turn)
    if verdict is not None:
        return Record((refused(turn, verdict),))
    match step.type:
        case step_pb2.STEP_TYPE_SHIELD_CALL:
            return _retrieve_or_infer(turn, config)
        case step_pb2.STEP_TYPE_MEMORY_RETRIEVAL:
            return _start_inference(turn, config, 1)
        case step_pb2.STEP_TYPE_TOOL_EXECUTION:
            return _start_inference(turn, config, step.iteration + 1)
        case _:
            return _after_inference(turn, config, step)


def _after_inference(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    if not step.inference.tool_calls:
        return Record((answered(turn, step, step.inference.stop_reason),))
    if step.iteration >= config.max_iterations:
        return Record((answered(turn, step, message_pb2.STOP_REASON_MAX_ITERATIONS),))
    return _start_tools(turn, config, step)


def _retrieve_or_infer(turn: turn_pb2.Turn, config: TurnConfig) -> Action:
    banks = list(config.config.retrieval.bank_ids)
    if turn.session_bank_id:
        banks.append(turn.session_bank_id)
    if not banks:
        return _start_inference(turn, config, 1)
    plan = event_pb2.MemoryRetrievalPlan(bank_ids=banks)
    return Record((start_event(turn, memory_retrieval=plan),))


def _start_inference(turn: turn_pb2.Turn, config: TurnConfig, iteration: int) -> Action:
    exhausted = budget.exhausted(turn, config.config.limits)
    if exhausted is not None:
        return Record((failed(turn, exhausted),))
    plan = event_pb2.InferencePlan(
        model_id=config.model_id,
        provider_id=config.provider_id,
        reserved_tokens=budget.remaining_tokens(turn, config.config.limits),
    )
    return Record((start_event(turn, iteration, inference=plan),))


def _start_tools(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    exhausted = budget.tool_calls_exhausted(turn, config.config.limits, len(step.inference.tool_calls))
    if exhausted is not None:
        return Record((failed(turn, exhausted),))
    plan = event_pb2.ToolExecutionPlan(
        call_ids=[call.call_id for call in step.inference.tool_calls], inference_step_id=step.step_id
    )
    return Record((start_event(turn, step.iteration, tool_execution=plan),))


def _execute(turn: turn_pb2.Turn, config: TurnConfig, step: step_pb2.Step) -> Action:
    """Calls that cannot run are answered at once, tools of the mesh run, and given results pass their shields.

    Then the turn pauses for the caller's functions, and for what is to be done about calls whose outcome was lost.
    """
    waiting = [execution for execution in step.tool_execution.executions if not execution.HasField("result")]
    refusals = [result for execution in waiting if (result := calls.refusal(execution.call, config)) is not None]
    if refusals:
        return Record(
            tuple(
                draft(turn.turn_id, "tool_call_completed", event_pb2.ToolCallCompleted(result=result), step.step_id)
                for result in refusals
            )
        )
    if any(execution.held for execution in step.tool_execution.executions):
        return RunTools(step)
    if any(not calls.is_callers(execution.call, config) for execution in waiting):
        return RunTools(step)
    doubtful = calls.in_doubt(step) if config.asks_about_unknown_outcomes else []
    if not waiting and not doubtful:
        completed = event_pb2.StepCompleted(tool_execution=event_pb2.ToolExecutionResult())
        return Record((draft(turn.turn_id, "step_completed", completed, step.step_id),))
    return Record(tuple(_pause(turn, config, step, waiting, doubtful)))


def _pause(
    turn: turn_pb2.Turn,
    config: TurnConfig,
    step: step_pb2.Step,
    waiting: list[step_pb2.ToolExecution],
    doubtful: list[step_pb2.ToolExecution],
) -> list[event_pb2.StepEvent]:
    events = [
        draft(
            turn.turn_id,
            "tool_call_started",
            event_pb2.ToolCallStarted(call_id=execution.call.call_id, by_caller=True),
            step.step_id,
        )
        for execution in waiting
        if not execution.HasField("start_time")
    ]
    expire_time = clock.now_microseconds() + int(config.pause_seconds * 1_000_000)
    asked = [(execution, turn_pb2.INPUT_KIND_TOOL_RESULT) for execution in waiting]
    asked += [(execution, turn_pb2.INPUT_KIND_OUTCOME_DECISION) for execution in doubtful]
    requests = [
        turn_pb2.InputRequest(call=execution.call, step_id=step.step_id, kind=kind) for execution, kind in asked
    ]
    awaited = turn_pb2.AwaitedInput(requests=requests, expire_time=clock.timestamp(expire_time))
    events.append(draft(turn.turn_id, "turn_awaiting_input", event_pb2.TurnAwaitingInput(awaited_input=awaited)))
    return events


def failed(turn: turn_pb2.Turn, failure: error_pb2.Failure) -> event_pb2.StepEvent:
    """Returns the event that ends a turn with a failure."""
    return draft(turn.turn_id, "turn_failed", event_pb2.TurnFailed(failure=failure, usage=turn.usage))
