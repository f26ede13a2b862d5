"""The caller's own functions, run when the model calls them."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from typing import TYPE_CHECKING, Any

from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, message_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_RESULT_BYTES = 128 * 1024
"""A longer result is not given to the model; it reads how long the result was."""
_SUBMITTED_BYTES = 160 * 1024


class CallerTools:
    """Answers the calls of a turn with functions, all calls of a pause at once.

    A plain function runs in a thread, so that it holds up nothing else. What a function raises the model reads as the
    failure of its call, as with any other tool.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        """`functions` have the names of the agent's tools, and take their arguments by name."""
        self._functions = dict(functions)

    def answer(self, requests: Sequence[turn_pb2.InputRequest]) -> bool:
        """True when there is a function for everything that a turn waits for.

        With one missing none is run: the pause is the caller's as a whole.
        """
        return bool(requests) and all(
            request.kind == turn_pb2.INPUT_KIND_TOOL_RESULT and request.call.name in self._functions
            for request in requests
        )

    async def answers(
        self, turn_id: str, requests: Sequence[turn_pb2.InputRequest]
    ) -> list[agent_service_pb2.SubmitTurnInputRequest]:
        """Runs all calls at once; returns what to submit, in as few requests as the service takes."""
        results = await asyncio.gather(*(self._result(request.call) for request in requests))
        answers: list[agent_service_pb2.SubmitTurnInputRequest] = []
        for result in results:
            if not answers or answers[-1].ByteSize() + result.ByteSize() > _SUBMITTED_BYTES:
                answers.append(agent_service_pb2.SubmitTurnInputRequest(turn_id=turn_id))
            answers[-1].inputs.add(tool_result=result)
        return answers

    async def _result(self, call: message_pb2.ToolCall) -> message_pb2.ToolResult:
        begun = time.monotonic()
        try:
            result = _as_result(await self._value(call))
            size = len(result.content.encode())
            if size > MAX_RESULT_BYTES:
                result = _failed(call, f"the result has {size} bytes and may have {MAX_RESULT_BYTES}: ask for less")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The function let a cancellation of its own out. Nobody has cancelled this turn's reader.
            result = _failed(call, "the function was cancelled")
        except Exception as error:
            result = _failed(call, f"{type(error).__name__}: {error}")
        result.call_id = call.call_id
        result.name = call.name
        result.duration.FromNanoseconds(int((time.monotonic() - begun) * 1_000_000_000))
        return result

    async def _value(self, call: message_pb2.ToolCall) -> object:
        function = self._functions[call.name]
        arguments = json.loads(call.arguments_json or "{}")
        if _is_coroutine_function(function):
            return await function(**arguments)
        value = await asyncio.to_thread(function, **arguments)
        return await value if inspect.isawaitable(value) else value


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    # An object with an async `__call__` is one too, and inspect looks at functions only.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _as_result(value: object) -> message_pb2.ToolResult:
    if isinstance(value, message_pb2.ToolResult):
        result = message_pb2.ToolResult()
        result.CopyFrom(value)
        return result
    if isinstance(value, str):
        return message_pb2.ToolResult(content=value)
    from pydantic_core import to_json  # loads slowly; knows models, dataclasses, dates, sets

    return message_pb2.ToolResult(content=to_json(value).decode())


def _failed(call: message_pb2.ToolCall, message: str) -> message_pb2.ToolResult:
    failure = error_pb2.Failure(
        reason=error_pb2.ERROR_REASON_TOOL_FAILED, message=message, metadata={"tool": call.name}
    )
    return message_pb2.ToolResult(failure=failure)
