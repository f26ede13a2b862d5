"""An execution that runs, as its readers see it: any number, each from the first byte of output, none waited for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from turnwire.tool_executor.results import clean
from turnwire.tool_executor.tools.port import ATTEMPTS
from turnwire.tool_executor.v1 import execution_pb2, tool_executor_service_pb2
from turnwire.tool_executor.written import cut

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.common.v1 import message_pb2
    from turnwire.errors import TurnwireError
    from turnwire.tool_executor.store.executions import Key, State

_MOST_KEPT = 4 * 1024 * 1024
"""So much output is kept for readers that come later; a tool that writes more is read in its result."""
_MORE = b"\n[More was written; it is not shown here.]\n"
_LARGEST_PIECE = 64 * 1024


class Running:
    """One execution of this process."""

    def __init__(self, key: Key) -> None:
        """Nothing was sent yet."""
        self.key = key
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        """Somebody wants it stopped."""
        self.begun = False
        """Its task has taken its first step; before that a cancelled task would end without a word."""
        self.settled = False
        """Its outcome is known and being written: it can no longer be stopped."""
        self._state: State.ValueType = execution_pb2.EXECUTION_STATE_PREPARED
        self._output = bytearray()
        self._full = False
        self._progress: tool_executor_service_pb2.ExecutionProgress | None = None
        self._attempts: list[tool_executor_service_pb2.ExecutionProgress] = []
        """Further attempts: each is told, however soon the next one follows."""
        self._changes = 0
        self._changed = asyncio.Event()
        self._result: message_pb2.ToolResult | None = None
        self._error: TurnwireError | None = None

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output.decode()

    def stop(self) -> None:
        """Ends it, unless its outcome is known already."""
        self.stopping = True
        if self.task is not None and self.begun and not self.settled:
            self.task.cancel()

    def taken_back(self) -> None:
        """Lets its task go on to write the outcome down, after it was cancelled; it is not cut again."""
        self.settled = True
        if self.task is not None:
            self.task.uncancel()

    def dispatched(self) -> None:
        """Tells the readers that the call was sent."""
        self._state = execution_pb2.EXECUTION_STATE_DISPATCHED
        self._progress = None
        self._tell()

    def progress(self, done: int, total: int, unit: str) -> None:
        """Tells the readers how much is done."""
        made = tool_executor_service_pb2.ExecutionProgress(state=self._state, done=done, total=total, unit=unit)
        if unit == ATTEMPTS:
            self._attempts.append(made)
        else:
            self._progress = made
        self._tell()

    def write(self, text: str) -> None:
        """Gives the readers a piece of output."""
        if self._full or not text:
            return
        data = clean(text).encode()
        room = _MOST_KEPT - len(self._output)
        if len(data) > room:
            self._full = True
            data = cut(data[:room]).encode() + _MORE
        self._output += data
        self._tell()

    def finish(self, result: message_pb2.ToolResult) -> None:
        """Gives the readers the result, which the journal has by now."""
        self._result = result
        self._tell()

    def fail(self, error: TurnwireError) -> None:
        """Ends the readers' streams: the outcome could not be written down."""
        self._error = error
        self._tell()

    async def ended(self) -> None:
        """Waits for the end.

        Raises:
            TurnwireError: the outcome could not be written down.
        """
        while self._result is None and self._error is None:
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def read(self) -> AsyncGenerator[tool_executor_service_pb2.ExecuteToolResponse]:
        """Yields where it is, the output from its beginning in pieces as they come, and the result.

        A reader that falls behind gets fewer, larger pieces.
        """
        seen = -1
        state: State.ValueType | None = None
        progress: tool_executor_service_pb2.ExecutionProgress | None = None
        offset = attempts = 0
        while True:
            changed = self._changed
            if seen != self._changes:
                seen = self._changes
                if self._state != state:
                    state = self._state
                    yield at(state)
                while attempts < len(self._attempts):
                    attempts += 1
                    yield tool_executor_service_pb2.ExecuteToolResponse(progress=self._attempts[attempts - 1])
                if self._progress is not None and self._progress is not progress:
                    progress = self._progress
                    yield tool_executor_service_pb2.ExecuteToolResponse(progress=progress)
            while offset < len(self._output):
                text = cut(bytes(self._output[offset : offset + _LARGEST_PIECE]))
                output = tool_executor_service_pb2.ExecutionOutput(offset=offset, text=text)
                offset += len(text.encode())
                yield tool_executor_service_pb2.ExecuteToolResponse(output=output)
            if self._error is not None:
                raise self._error
            if self._result is not None:
                yield tool_executor_service_pb2.ExecuteToolResponse(result=self._result)
                return
            if seen == self._changes:
                await changed.wait()

    def _tell(self) -> None:
        self._changes += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def at(state: State.ValueType) -> tool_executor_service_pb2.ExecuteToolResponse:
    """Returns the message that tells a state."""
    progress = tool_executor_service_pb2.ExecutionProgress(state=state)
    return tool_executor_service_pb2.ExecuteToolResponse(progress=progress)
