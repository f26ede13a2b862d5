"""A TOOL_EXECUTION step: the calls of one answer that the mesh runs, all at once, each with events of its own."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import grpc

from turnwire.agent.log.writer import draft
from turnwire.agent.turn.calls import failed_result, is_callers
from turnwire.agent.turn.config import CODE_INTERPRETER
from turnwire.agent.turn.inputs import is_unknown
from turnwire.agent.turn.retrying import passes
from turnwire.agent.turn.together import together
from turnwire.agent.turn.transcript import excerpts
from turnwire.agent.v1 import agent_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import TurnwireError, from_rpc_error, may_have_arrived
from turnwire.runtime.channels import upstream
from turnwire.runtime.failpoints import Failpoint
from turnwire.runtime.retrying import delay_of
from turnwire.tool_executor.v1 import tool_executor_service_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnwire.agent.log.writer import TurnWriter
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.agent.turn.retrieval import RetrievalStep
    from turnwire.agent.turn.screening import Commit, Screening
    from turnwire.agent.turn.stopping import Stopping
    from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceStub

_ASKED = Failpoint("agent.tool_asked")
_OUTPUT = Failpoint("agent.tool_output")
_ANSWERED = Failpoint("agent.tool_answered")
_TRIES = 8
"""How often the executor is asked for one call while it is away: asking again under a call id is safe."""
_SECONDS = 900.0
_MARGIN_SECONDS = 30.0
_PROGRESS_SECONDS = 1.0
"""Progress is an event that is stored: a tool that counts fast is told of once in so long."""
_ATTEMPTS = "attempts"
"""What is counted where the executor is asked again, or the executor asks a tool again."""

_RAN = frozenset(
    {
        error_pb2.ERROR_REASON_TOOL_FAILED,
        error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        error_pb2.ERROR_REASON_OUTCOME_UNKNOWN,
    }
)
"""Failures of calls that may have begun; with any other one nothing has reached the tool."""


class ToolStep:
    """Runs tool calls of one turn."""

    def __init__(
        self,
        executor: ToolExecutorServiceStub,
        retrieval: RetrievalStep,
        writer: TurnWriter,
        config: TurnConfig,
        screening: Screening,
        commit: Commit,
        stopping: Stopping,
        *,
        epoch: int,
        given: Mapping[str, message_pb2.ToolResult],
    ) -> None:
        """`epoch` is that of the turn's owner: the executor refuses those of owners before it.

        `given` are results that wait for their shields, by call id.
        """
        self._executor = executor
        self._retrieval = retrieval
        self._writer = writer
        self._config = config
        self._screening = screening
        self._commit = commit
        self._stopping = stopping
        self._epoch = epoch
        self._given = given
        self._begun: set[str] = set()
        """Calls that the executor may have begun, as far as is known here."""

    async def run(self, turn: turn_pb2.Turn, step: step_pb2.Step) -> list[event_pb2.StepEvent]:
        """Runs all calls that have no result, and has shields pass those that were given.

        Their events are committed when it returns.
        """
        await together(*(self._one(turn, step, execution) for execution in self._open(step)))
        return []

    async def stop(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, seconds: float
    ) -> dict[str, turn_pb2.CancelledCall.Outcome.ValueType]:
        """Stops the calls that are open; returns what became of each, as far as that is known in so many seconds."""
        open_calls = [each.call for each in self._open(step) if each.HasField("start_time") and not each.held]
        outcomes = await asyncio.gather(*(self._stopped(turn, call, seconds) for call in open_calls))
        return {call.call_id: outcome for call, outcome in zip(open_calls, outcomes, strict=True)}

    def _open(self, step: step_pb2.Step) -> list[step_pb2.ToolExecution]:
        return [
            execution
            for execution in step.tool_execution.executions
            if execution.held or (not execution.HasField("result") and not is_callers(execution.call, self._config))
        ]

    async def _one(self, turn: turn_pb2.Turn, step: step_pb2.Step, execution: step_pb2.ToolExecution) -> None:
        call = message_pb2.ToolCall()
        call.CopyFrom(execution.call)
        result = await self._asked(turn, step, execution, call) if not execution.held else self._given_for(call)
        result.call_id, result.name = call.call_id, call.name
        if self._screening.holds_result(call.name):
            result = await self._screened(turn, step, call, result)
        completed = event_pb2.ToolCallCompleted(result=result)
        await self._commit([draft(turn.turn_id, "tool_call_completed", completed, step.step_id)])

    def _given_for(self, call: message_pb2.ToolCall) -> message_pb2.ToolResult:
        result = message_pb2.ToolResult()
        result.CopyFrom(self._given[call.call_id])
        return result

    async def _screened(
        self,
        turn: turn_pb2.Turn,
        step: step_pb2.Step,
        call: message_pb2.ToolCall,
        result: message_pb2.ToolResult,
    ) -> message_pb2.ToolResult:
        """Returns what passes of a result. A failure may say what code has raised, or a server has answered."""
        # That an outcome was lost is told by the mesh.
        texts = [result.content, "" if is_unknown(result) else result.failure.message]
        if not any(texts):
            return result
        passed = await self._screening.result(turn, step.iteration, call, texts)
        if passed is not None:
            result.content = passed[0]
            if texts[1]:
                result.failure.message = passed[1]
        elif is_unknown(result):
            result.content = ""  # what is in doubt stays in doubt, whatever it had written
        else:
            result = _withheld(call)
        return result

    async def _asked(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, execution: step_pb2.ToolExecution, call: message_pb2.ToolCall
    ) -> message_pb2.ToolResult:
        """Returns the result of a call that the mesh runs."""
        if execution.HasField("start_time"):
            self._begun.add(call.call_id)  # an owner before this one may have asked for it
        else:
            started = event_pb2.ToolCallStarted(call_id=call.call_id)
            await self._commit([draft(turn.turn_id, "tool_call_started", started, step.step_id)])
        return await self._result(turn, step, call)

    async def _result(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, call: message_pb2.ToolCall
    ) -> message_pb2.ToolResult:
        tool = self._config.tool(call.name)
        assert tool is not None
        attempt = 1
        ends = time.monotonic() + _search_seconds(tool)
        while True:
            try:
                if tool.WhichOneof("tool") == "memory_search":
                    return await self._searched(turn, tool.memory_search, call, ends - time.monotonic())
                return await self._executed(turn, step, tool, call)
            except grpc.RpcError as raised:
                service = "memory" if tool.WhichOneof("tool") == "memory_search" else "tool_executor"
                error = from_rpc_error(raised, service=service)
                if may_have_arrived(raised):
                    self._begun.add(call.call_id)
            except TurnwireError as raised:
                error = raised
            delay = min(2.0, delay_of(error, min(attempt, 3)))
            if not passes(error) or attempt >= _TRIES or time.monotonic() + delay >= ends:
                return self._unanswered(tool, call, error)
            await asyncio.sleep(delay)
            attempt += 1
            again = event_pb2.StepProgress(done=attempt, total=_TRIES, unit=_ATTEMPTS, call_id=call.call_id)
            await self._commit([draft(turn.turn_id, "step_progress", again, step.step_id)])

    def _unanswered(
        self, tool: agent_pb2.AgentTool, call: message_pb2.ToolCall, error: TurnwireError
    ) -> message_pb2.ToolResult:
        """The result of a call that no answer came to: it failed, unless it may have had effects."""
        metadata = {"tool": call.name, "call_id": call.call_id, **error.metadata}
        if tool.WhichOneof("tool") != "registered" or tool.registered.idempotent or call.call_id not in self._begun:
            return failed_result(call, error.reason, error.message, metadata)
        message = (
            f"What {call.name} did is not known: {error.message} It is not repeated by itself; look at what it may have"
            " done."
        )
        return failed_result(call, error_pb2.ERROR_REASON_OUTCOME_UNKNOWN, message, metadata)

    async def _executed(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, tool: agent_pb2.AgentTool, call: message_pb2.ToolCall
    ) -> message_pb2.ToolResult:
        named = message_pb2.ToolCall()
        named.CopyFrom(call)
        named.name = tool.registered.tool_id
        request = tool_executor_service_pb2.ExecuteToolRequest(
            call=named, turn_id=turn.turn_id, session_id=turn.session_id, owner_epoch=self._epoch
        )
        if tool.HasField("limits"):
            _take_limits(request.limits, tool.limits)
        if call.name == CODE_INTERPRETER and self._config.files_go_to_interpreter and not _interpreted(turn, step):
            request.attachments.extend(attachment for message in turn.input for attachment in message.attachments)
        held = self._screening.holds_result(call.name)
        # The executor ends what passes the tool's own limit, and says so; this one is for an executor that does not.
        seconds = max(_SECONDS, tool.limits.total.seconds + _MARGIN_SECONDS)
        told = float("-inf")
        stream = self._executor.ExecuteTool(request, timeout=seconds)
        async with upstream(stream):
            await _ASKED.reached()
            async for response in stream:
                self._begun.add(call.call_id)
                match response.WhichOneof("payload"):
                    case "output" if not held:
                        self._writer.delta(
                            step.step_id,
                            step.attempt,
                            event_pb2.DELTA_PART_TOOL_OUTPUT,
                            response.output.text,
                            call_id=call.call_id,
                            offset=response.output.offset,
                        )
                        if Failpoint.armed:
                            await _OUTPUT.reached()
                        await self._writer.room()
                    case "progress" if response.progress.unit == _ATTEMPTS:
                        # Few, and each is told: what is tried again is never tried again in silence.
                        further = _progress(response.progress, call.call_id)
                        await self._commit([draft(turn.turn_id, "step_progress", further, step.step_id)])
                    case "progress" if response.progress.unit and time.monotonic() - told >= _PROGRESS_SECONDS:
                        told = time.monotonic()
                        done = _progress(response.progress, call.call_id)
                        await self._commit([draft(turn.turn_id, "step_progress", done, step.step_id)])
                    case "result":
                        await _ANSWERED.reached()
                        return response.result
                    case _:
                        pass  # how it stands, progress too soon after the last, and pieces of later versions
        raise TurnwireError.cut("tool_executor")

    async def _searched(
        self, turn: turn_pb2.Turn, tool: agent_pb2.MemorySearchTool, call: message_pb2.ToolCall, seconds: float
    ) -> message_pb2.ToolResult:
        banks = list(tool.bank_ids or self._config.config.retrieval.bank_ids)
        if turn.session_bank_id and not tool.bank_ids:
            banks.append(turn.session_bank_id)
        query = str(json.loads(call.arguments_json)["query"])
        chunks = await self._retrieval.search(banks, query, tool.max_chunks or 5, seconds=seconds)
        return message_pb2.ToolResult(content=excerpts(chunks) or "Nothing was found.")

    async def _stopped(
        self, turn: turn_pb2.Turn, call: message_pb2.ToolCall, seconds: float
    ) -> turn_pb2.CancelledCall.Outcome.ValueType:
        tool = self._config.tool(call.name)
        if tool is None or tool.WhichOneof("tool") != "registered":
            return turn_pb2.CancelledCall.OUTCOME_STOPPED
        request = tool_executor_service_pb2.CancelExecutionRequest(
            turn_id=turn.turn_id, call_id=call.call_id, owner_epoch=self._epoch
        )
        return await self._stopping.stop(request, seconds)


def _search_seconds(tool: agent_pb2.AgentTool) -> float:
    """Returns the seconds that a search in memory may take in all; of other tools the executor keeps the time."""
    if tool.WhichOneof("tool") == "memory_search" and tool.limits.HasField("total"):
        return tool.limits.total.ToTimedelta().total_seconds()
    return float("inf")


def _interpreted(turn: turn_pb2.Turn, step: step_pb2.Step) -> bool:
    """True when an earlier step of the turn has run code: the turn's files are there, and it may have changed them."""
    for earlier in turn.steps:
        if earlier.step_id == step.step_id:
            return False
        for execution in earlier.tool_execution.executions:
            result = execution.result
            ran = execution.HasField("result") and (not result.HasField("failure") or result.failure.reason in _RAN)
            if ran and execution.call.name == CODE_INTERPRETER:
                return True
    return False


def _progress(progress: tool_executor_service_pb2.ExecutionProgress, call_id: str) -> event_pb2.StepProgress:
    return event_pb2.StepProgress(done=progress.done, total=progress.total, unit=progress.unit, call_id=call_id)


def _take_limits(limits: tool_executor_service_pb2.ExecutionLimits, wanted: agent_pb2.ToolLimits) -> None:
    for descriptor, value in wanted.ListFields():
        getattr(limits, descriptor.name).CopyFrom(value)


def _withheld(call: message_pb2.ToolCall) -> message_pb2.ToolResult:
    return failed_result(
        call,
        error_pb2.ERROR_REASON_TOOL_DENIED,
        f"A shield withheld the result of {call.name}.",
        {"tool": call.name, "call_id": call.call_id},
    )
