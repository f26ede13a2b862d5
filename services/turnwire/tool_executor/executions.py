"""The executions of this process: each call runs once, however many ask for it, and whether or not they stay."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from jsonschema import Draft202012Validator

from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import Draining, Internal, InvalidArgument, NotServed, StoreUnavailable, TurnwireError
from turnwire.runtime.failpoints import Failpoint
from turnwire.runtime.identity import acting_as
from turnwire.tool_executor import journal as journals
from turnwire.tool_executor import results
from turnwire.tool_executor.attempts import attempts
from turnwire.tool_executor.journal import Seen
from turnwire.tool_executor.limits import Clock, LimitPassed, Limits, wanted_total, with_wishes
from turnwire.tool_executor.locks import KeyedLocks
from turnwire.tool_executor.patience import patiently
from turnwire.tool_executor.running import Running, at
from turnwire.tool_executor.tools.port import Answer, Call, NeverSent, OutcomeLost, Output, Progress, Sending
from turnwire.tool_executor.v1 import execution_pb2, tool_executor_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.tool_executor.artifacts import Artifacts
    from turnwire.tool_executor.attachments import Attachments
    from turnwire.tool_executor.journal import Ask, Journal
    from turnwire.tool_executor.registry import Found, Tools
    from turnwire.tool_executor.store.executions import ExecutionRow, Key, State
    from turnwire.tool_executor.tools.port import Piece, Provider
    from turnwire.tool_executor.v1 import tool_pb2
    from turnwire.tool_executor.workspaces import Changes

_log = structlog.get_logger(__name__)
_ANSWERED = Failpoint("tool_executor.tool_answered")

_FAILED = execution_pb2.EXECUTION_STATE_FAILED
_CANCELLED = execution_pb2.EXECUTION_STATE_CANCELLED
_FOLLOW_SECONDS = 0.2
"""So often it is looked for the outcome of a call that another process runs."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What an execution needs to run."""

    ask: Ask
    request: tool_executor_service_pb2.ExecuteToolRequest
    tool: tool_pb2.Tool
    provider: Provider
    limits: Limits

    async def may_go_on(self) -> bool:
        """Returns whether a call that was sent, and is left, may still have an effect that counts."""
        return not self.tool.idempotent and not await self.provider.has_ended(self.ask.key[0], self.ask.session_id)


class _Outcome(NamedTuple):
    state: State.ValueType
    result: message_pb2.ToolResult
    changes: Changes | None = None
    """What the tool has changed in the sandbox of the session."""


class _NotSent(Exception):
    """The journal does not let the call be sent any more."""


class Executions:
    """Executes calls, each under its row in the journal."""

    def __init__(
        self, journal: Journal, tools: Tools, artifacts: Artifacts, attachments: Attachments, draining: asyncio.Event
    ) -> None:
        """Takes no new call while `draining` is set."""
        self._journal = journal
        self._tools = tools
        self._artifacts = artifacts
        self._attachments = attachments
        self._draining = draining
        self._locks = KeyedLocks()
        self._running: dict[Key, Running] = {}

    @property
    def count(self) -> int:
        """How many run."""
        return len(self._running)

    async def execute(
        self, tenant: str, request: tool_executor_service_pb2.ExecuteToolRequest
    ) -> AsyncGenerator[tool_executor_service_pb2.ExecuteToolResponse]:
        """Executes a call, attaches to it when it runs, or gives its outcome when it has one.

        Raises:
            NotFound: there is no such tool.
            NotServed: its provider is not configured.
            InvalidArgument: the tool takes no files, or no credential.
            IdempotencyConflict: the call was asked for with something else.
            NotOwner: a later owner of the turn has been here.
            ResourceInUse: the call that it repeats still runs.
        """
        ask = journals.ask_of(tenant, request)
        while True:
            async with self._locks.held(ask.key):
                running = self._running.get(ask.key)
                seen = await self._journal.find(ask, here=running is not None)
                if running is None and (seen is None or not (seen.row.ended or seen.elsewhere)):
                    seen, running = await self._taken_up(ask, request)
            if running is not None:
                async with aclosing(running.read()) as responses:
                    async for response in responses:
                        yield response
                return
            assert seen is not None
            yield at(seen.row.state)
            row = await self._followed(seen) if seen.elsewhere else seen.row
            if row.ended:
                yield tool_executor_service_pb2.ExecuteToolResponse(result=journals.described(row).result)
                return

    async def get(self, key: Key) -> execution_pb2.Execution:
        """Returns a call as the journal has it.

        Raises:
            NotFound: nobody has asked for it.
        """
        return journals.described(await self._journal.get(key))

    async def cancel(self, key: Key, owner_epoch: int) -> execution_pb2.Execution:
        """Stops a call; returns it with the outcome that it has by now.

        Raises:
            NotFound: nobody has asked for it, and the canceller is no owner.
            NotOwner: a later owner of the turn has been here.
        """
        while True:
            async with self._locks.held(key):
                running = self._running.get(key)
                seen = await self._journal.fence(key, owner_epoch, here=running is not None)
                row = seen.row
                if running is not None:
                    running.stop()
                elif not row.ended and not seen.elsewhere:
                    row = await self._journal.stop_left(key)
            if running is not None:
                await running.ended()
                return await self.get(key)
            if seen.elsewhere:
                row = await self._followed(seen)
            if row.ended:
                return journals.described(row)

    async def resolve(self, key: Key, result: message_pb2.ToolResult | None) -> execution_pb2.Execution:
        """Takes a decision about a call whose outcome was lost: it has a result, or stays unknown.

        Raises:
            NotFound: nobody has asked for the call.
            ExecutionNotInDoubt: there is nothing to decide, or something else was decided.
        """
        return journals.described(await self._journal.resolve(key, result))

    def stop(self, key: Key) -> None:
        """Stops a call if it runs here; somebody has asked another process."""
        running = self._running.get(key)
        if running is not None:
            running.stop()

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Gives what runs so long to end, then leaves it; its rows tell the next process how far it was."""
        left = list(self._running.values())
        tasks = [running.task for running in left if running.task is not None]
        if tasks and grace_seconds:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for running in left:
            running.fail(Draining(service="tool_executor"))

    async def _followed(self, seen: Seen) -> ExecutionRow:
        """Waits for a call that another process runs: for its outcome, or until that process has left it."""
        while seen.elsewhere:
            await asyncio.sleep(_FOLLOW_SECONDS)
            seen = await self._journal.look(seen.row.key)
        return seen.row

    async def _taken_up(
        self, ask: Ask, request: tool_executor_service_pb2.ExecuteToolRequest
    ) -> tuple[Seen, Running | None]:
        """Starts a call that is new, or that a process has left before anything was sent that counts."""
        if self._draining.is_set():
            raise Draining(service="tool_executor")
        found = await self._tools.resolve(ask.key[0], ask.name)
        work = _work(ask, request, found)
        seen, ours = await self._journal.claim(ask, tool_id=work.tool.tool_id, idempotent=work.tool.idempotent)
        if not ours:
            return seen, None
        # Also of one that was left: perhaps before its refusal was written down.
        problem = argument_problem(work.tool, ask.arguments_json)
        if problem is not None:
            row = await self._journal.ended(ask.key, _FAILED, _refused(ask, work.tool, *problem))
            return Seen(row, elsewhere=False), None
        running = self._running[ask.key] = Running(ask.key)
        running.task = asyncio.create_task(self._run(running, work), name=f"execution {ask.key[2]}")
        return seen, running

    async def _run(self, running: Running, work: _Work) -> None:
        """Runs a call to its outcome. It has no caller: those who asked may go, and their deadlines with them."""
        tenant, turn_id, call_id = running.key
        running.begun = True
        try:
            with acting_as(tenant):
                structlog.contextvars.bind_contextvars(turn_id=turn_id, call_id=call_id, tool=work.tool.tool_id)
                begun = time.monotonic()
                state, result, changes = await self._outcome(running, work)
                # From here on it is not stopped any more: there is an outcome, and it has to be written down.
                running.settled = True
                result.call_id, result.name = call_id, work.ask.name
                await results.fit(result, self._artifacts, tenant=tenant, session_id=work.ask.session_id)
                result.duration.FromMilliseconds(int((time.monotonic() - begun) * 1000))
                row = await self._written(running.key, state, result, changes)
                if not row.ended:
                    raise Draining(service="tool_executor")  # another process has it by now: ask there
                _log.info("tool_executed", state=execution_pb2.ExecutionState.Name(row.state))
                running.finish(journals.described(row).result)
        except TurnwireError as error:
            _log.error("outcome_not_written", reason=error.message)
            running.fail(error)
        except asyncio.CancelledError:
            running.fail(Draining(service="tool_executor"))
            raise
        except Exception:
            _log.exception("execution_defect")
            running.fail(Internal(service="tool_executor"))
        finally:
            self._running.pop(running.key, None)

    async def _outcome(self, running: Running, work: _Work) -> _Outcome:
        call_id, tool_id = work.ask.key[2], work.tool.tool_id
        sent = False
        try:
            if running.stopping:
                raise _NotSent
            answer: Answer | None = None
            async with aclosing(self._pieces(work)) as pieces:
                async for piece in pieces:
                    match piece:
                        case Sending():
                            if not await self._journal.dispatched(running.key):
                                raise _NotSent
                            sent = True
                            running.dispatched()
                        case Output():
                            running.write(piece.text)
                        case Progress():
                            running.progress(piece.done, piece.total, piece.unit)
                        case Answer():
                            await _ANSWERED.reached()
                            answer = piece
            if answer is None:
                raise TurnwireError.cut(work.provider.provider_id)
            result = message_pb2.ToolResult(content=answer.content, attachments=answer.attachments)
            if answer.failure is not None:
                result.failure.CopyFrom(answer.failure)
            state = _FAILED if answer.failure is not None else execution_pb2.EXECUTION_STATE_SUCCEEDED
            return _Outcome(state, result, answer.changes)
        except _NotSent:
            # It is to be stopped, or another process has it: then this is not written.
            return _Outcome(_CANCELLED, journals.stopped(call_id, tool_id))
        except asyncio.CancelledError:
            if not running.stopping:
                raise
            running.taken_back()
            if sent and await work.may_go_on():
                return _lost(running, work, "it was stopped after it had been sent, and may go on")
            return _Outcome(_CANCELLED, _with(running, journals.stopped(call_id, tool_id)))
        except OutcomeLost as lost:
            if not work.tool.idempotent:
                return _lost(running, work, str(lost))
            result = _failed_on_the_way(call_id, tool_id, lost)
        except LimitPassed as passed:
            running.settled = True  # who wants it stopped now is told what became of it
            if sent and passed.limit != "connect" and await work.may_go_on():
                return _lost(running, work, f"it was waited for no longer: {passed.told}")
            message = f"{tool_id} was ended: {passed.told}. Allow it more time, or ask it for less."
            facts = {"service": "tool_executor", "limit": passed.limit}
            result = results.failed(call_id, tool_id, error_pb2.ERROR_REASON_DEADLINE_EXCEEDED, message, facts)
        except NeverSent as never:
            result = results.failed_by(call_id, tool_id, never.error)
        except TurnwireError as error:
            if isinstance(error, StoreUnavailable):
                if not sent:
                    raise  # it stays prepared: whoever asks again has it run when there is a database again
                if not work.tool.idempotent:
                    return _lost(running, work, f"what it gave could not be kept ({error.message})")
            result = results.failed_by(call_id, tool_id, error)
        except Exception:
            _log.exception("tool_defect")
            if sent and not work.tool.idempotent:
                return _lost(running, work, "a defect of Turnwire came in between, of which the logs have the trace")
            message = f"{tool_id} failed by a defect of Turnwire; the logs of the tool executor have the trace."
            result = results.failed(call_id, tool_id, error_pb2.ERROR_REASON_INTERNAL, message)
        return _Outcome(_FAILED, _with(running, result))

    async def _pieces(self, work: _Work) -> AsyncGenerator[Piece]:
        """Yields what a tool gives, within the limits of the execution."""
        ask, clock = work.ask, Clock(work.limits)
        files = []
        if work.request.attachments:
            files = await clock.within(self._attachments.read(ask.key[0], work.request.attachments))
        call = Call(
            tenant=ask.key[0],
            session_id=ask.session_id,
            turn_id=ask.key[1],
            call_id=ask.key[2],
            tool=work.tool,
            arguments=json.loads(ask.arguments_json or "{}"),
            files=files,
            authorization=work.request.authorization,
            limits=work.limits,
            wanted_total=wanted_total(work.request.limits),
            heard=clock.heard,
        )
        async with aclosing(attempts(work.provider, call, clock)) as pieces:
            async for piece in pieces:
                yield piece

    async def _written(
        self, key: Key, state: State.ValueType, result: message_pb2.ToolResult, changes: Changes | None
    ) -> ExecutionRow:
        """Writes an outcome down; a store that is away is waited for."""
        return await patiently(lambda: self._journal.ended(key, state, result, changes))


def argument_problem(tool: tool_pb2.Tool, arguments_json: str) -> tuple[str, str] | None:
    """Returns (path, problem) of arguments that do not fit a tool's schema, or None when they do."""
    try:
        arguments: Any = json.loads(arguments_json or "{}")
        if not isinstance(arguments, dict):
            return "$", "the arguments are no JSON object"
        schema = json.loads(tool.definition.parameters_json_schema or '{"type":"object"}')
        problem = next(iter(Draft202012Validator(schema).iter_errors(arguments)), None)
    except ValueError as error:
        return "$", f"the arguments are no JSON: {error}"
    except RecursionError:
        return "$", "the arguments are nested too deeply"
    return (problem.json_path, problem.message[:500]) if problem is not None else None


def _work(ask: Ask, request: tool_executor_service_pb2.ExecuteToolRequest, found: Found) -> _Work:
    tool, provider = found.tool, found.provider
    if provider is None:
        raise NotServed("tool", tool.tool_id)
    if request.attachments and not provider.takes_files:
        raise InvalidArgument.one("attachments", f"are not taken by {tool.tool_id}")
    if request.authorization and not provider.takes_authorization:
        raise InvalidArgument.one("authorization", f"is not taken by {tool.tool_id}")
    return _Work(ask, request, tool, provider, with_wishes(provider.defaults, request.limits))


def _refused(ask: Ask, tool: tool_pb2.Tool, path: str, problem: str) -> message_pb2.ToolResult:
    message = f"The arguments of {ask.name} do not fit its schema at {path}: {problem}. Call it with other arguments."
    reason = error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    result = results.failed(ask.key[2], tool.tool_id, reason, message, {"path": path})
    result.name = ask.name
    return result


def _lost(running: Running, work: _Work, why: str) -> _Outcome:
    """The outcome of a call that was sent, and of which nobody knows what it did."""
    result = journals.lost_result(work.ask.key[2], work.tool.tool_id, why)
    return _Outcome(journals.UNKNOWN, _with(running, result))


def _failed_on_the_way(call_id: str, tool_id: str, lost: OutcomeLost) -> message_pb2.ToolResult:
    """The result of a call whose outcome was lost, and that may be made again."""
    if lost.error is not None:
        return results.failed_by(call_id, tool_id, lost.error)
    told = f"{tool_id} failed: {lost}."
    return results.failed(call_id, tool_id, error_pb2.ERROR_REASON_TOOL_FAILED, told, retryable=True)


def _with(running: Running, result: message_pb2.ToolResult) -> message_pb2.ToolResult:
    """A result that failed, with what came before."""
    result.content = running.output
    return result
