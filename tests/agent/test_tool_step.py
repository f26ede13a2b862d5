"""A call of a tool whose executor goes away and stays away: what the turn is told depends on what may have happened."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from tests.agent.turns import TURN
from turnwire.agent.turn import tools
from turnwire.agent.turn.config import pin
from turnwire.agent.turn.screening import Screening
from turnwire.agent.turn.shields import Judgement
from turnwire.agent.turn.tools import ToolStep
from turnwire.agent.v1 import agent_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2, shield_pb2
from turnwire.errors import Draining
from turnwire.testing.ports import free_port
from turnwire.tool_executor.v1 import execution_pb2, tool_executor_service_pb2
from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import (
    ToolExecutorServiceServicer,
    ToolExecutorServiceStub,
    add_ToolExecutorServiceServicer_to_server,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from turnwire.agent.v1 import event_pb2

CALL = message_pb2.ToolCall(call_id="c1", name="pay", arguments_json="{}")


class _Executor(ToolExecutorServiceServicer):
    """Answers calls as the test says."""

    def __init__(self, answers: str) -> None:
        self.answers = answers
        self.asked = asyncio.Event()

    async def ExecuteTool(
        self, request: tool_executor_service_pb2.ExecuteToolRequest, context: Any
    ) -> AsyncIterator[tool_executor_service_pb2.ExecuteToolResponse]:
        if self.answers == "refuses":
            status = Draining(service="tool_executor").to_status()
            details = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(grpc.StatusCode.UNAVAILABLE, status.message, details)
        if self.answers == "begins":
            progress = tool_executor_service_pb2.ExecutionProgress(state=execution_pb2.EXECUTION_STATE_PREPARED)
            yield tool_executor_service_pb2.ExecuteToolResponse(progress=progress)
        self.asked.set()
        if self.answers == "counts":
            for done, unit in ((2, "attempts"), (3, "attempts"), (1, "pages"), (2, "pages")):
                progress = tool_executor_service_pb2.ExecutionProgress(done=done, total=3, unit=unit)
                yield tool_executor_service_pb2.ExecuteToolResponse(progress=progress)
            yield tool_executor_service_pb2.ExecuteToolResponse(result=message_pb2.ToolResult(content="done"))
            return
        if self.answers == "fails":
            failure = error_pb2.Failure(reason=error_pb2.ERROR_REASON_TOOL_FAILED, message="ValueError: the password")
            yield tool_executor_service_pb2.ExecuteToolResponse(result=message_pb2.ToolResult(failure=failure))
            return
        if self.answers == "loses":
            failure = error_pb2.Failure(reason=error_pb2.ERROR_REASON_OUTCOME_UNKNOWN, message="It was lost.")
            result = message_pb2.ToolResult(content="the password", failure=failure)
            yield tool_executor_service_pb2.ExecuteToolResponse(result=result)
            return
        await asyncio.Event().wait()


@asynccontextmanager
async def _serving(address: str, answers: str) -> AsyncGenerator[_Executor]:
    executor = _Executor(answers)  # pyright: ignore[reportAbstractUsage] - nothing else is asked
    server = grpc.aio.server()
    add_ToolExecutorServiceServicer_to_server(executor, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield executor
    finally:
        await server.stop(None)


class _Objecting:
    async def judge(self, *_: object, **__: object) -> Judgement:
        return Judgement([shield_pb2.ShieldVerdict(level=shield_pb2.VIOLATION_LEVEL_ERROR)], [])


async def _log_of(
    address: str, *, idempotent: bool, asked_before: bool, shields: Sequence[str] = ()
) -> list[event_pb2.StepEvent]:
    """Runs the one call of a turn; its events. Its shields object."""
    registered = agent_pb2.RegisteredTool(
        tool_id="pay", definition=generation_pb2.ToolDefinition(name="pay"), idempotent=idempotent
    )
    config = pin(
        agent_pb2.AgentConfig(model="p/m", tools=[agent_pb2.AgentTool(registered=registered, output_shields=shields)])
    )
    log: list[event_pb2.StepEvent] = []

    async def commit(events: Sequence[event_pb2.StepEvent]) -> None:
        log.extend(events)

    unused: Any = cast("object", None)
    execution = step_pb2.ToolExecution(call=CALL)
    if asked_before:
        execution.start_time.GetCurrentTime()
    step = step_pb2.Step(step_id="s1", iteration=1, tool_execution=step_pb2.ToolExecutionStep(executions=[execution]))
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = ToolExecutorServiceStub(channel)
        screening = Screening(cast("Any", _Objecting()), config, commit)
        step_of_calls = ToolStep(stub, unused, unused, config, screening, commit, unused, epoch=1, given={})
        await step_of_calls.run(turn_pb2.Turn(turn_id=TURN), step)
    return log


async def _result(
    address: str, *, idempotent: bool, asked_before: bool, shields: Sequence[str] = ()
) -> message_pb2.ToolResult:
    """Runs the one call of a turn; its result as the log has it."""
    log = await _log_of(address, idempotent=idempotent, asked_before=asked_before, shields=shields)
    return log[-1].tool_call_completed.result


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks again without a pause."""
    monkeypatch.setattr(tools, "delay_of", lambda *_: 0.0)


@pytest.mark.parametrize("answers", ["begins", "is silent"])
@pytest.mark.parametrize("idempotent", [False, True])
async def test_what_an_executor_may_have_done_that_died_and_stays_away_is_not_known(answers: str, *, idempotent: bool):
    address = f"127.0.0.1:{free_port()}"
    async with _serving(address, answers) as executor:
        running = asyncio.create_task(_result(address, idempotent=idempotent, asked_before=False))
        await executor.asked.wait()
    result = await running

    lost, away = error_pb2.ERROR_REASON_OUTCOME_UNKNOWN, error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
    assert (away if idempotent else lost) == result.failure.reason
    assert ("c1", "pay", "tool_executor") == (result.call_id, result.name, result.failure.metadata["service"])
    assert idempotent != ("look at what it may have done" in result.failure.message)
    assert "`turnwire status`" in result.failure.message


async def test_what_was_never_sent_has_failed():
    result = await _result(f"127.0.0.1:{free_port()}", idempotent=False, asked_before=False)

    assert error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE == result.failure.reason


async def test_what_an_executor_refuses_has_failed():
    address = f"127.0.0.1:{free_port()}"
    async with _serving(address, "refuses"):
        result = await _result(address, idempotent=False, asked_before=False)

    assert error_pb2.ERROR_REASON_DRAINING == result.failure.reason


async def test_a_call_in_doubt_stays_so_when_shields_withhold_what_it_has_written():
    address = f"127.0.0.1:{free_port()}"
    async with _serving(address, "loses"):
        result = await _result(address, idempotent=False, asked_before=False, shields=["no-password"])

    assert (error_pb2.ERROR_REASON_OUTCOME_UNKNOWN, "") == (result.failure.reason, result.content)


async def test_what_a_failed_tool_says_passes_the_shields_too():
    address = f"127.0.0.1:{free_port()}"
    async with _serving(address, "fails"):
        told = await _result(address, idempotent=True, asked_before=False)
        result = await _result(address, idempotent=True, asked_before=False, shields=["no-password"])

    assert "ValueError: the password" == told.failure.message
    assert error_pb2.ERROR_REASON_TOOL_DENIED == result.failure.reason
    assert "password" not in str(result)


async def test_what_an_owner_before_this_one_may_have_sent_is_not_known():
    result = await _result(f"127.0.0.1:{free_port()}", idempotent=False, asked_before=True)

    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == result.failure.reason


async def test_each_further_attempt_of_a_tool_is_told_however_soon_and_other_progress_now_and_then():
    address = f"127.0.0.1:{free_port()}"
    async with _serving(address, "counts"):
        log = await _log_of(address, idempotent=True, asked_before=False)

    told = [event.step_progress for event in log if event.HasField("step_progress")]
    assert [(2, "attempts"), (3, "attempts"), (1, "pages")] == [(each.done, each.unit) for each in told]
