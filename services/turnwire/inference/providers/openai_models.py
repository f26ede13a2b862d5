"""The models of an OpenAI-compatible server, as it lists them itself, asked in the background."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from turnwire.errors import TurnwireError
from turnwire.inference.registry import built_in
from turnwire.inference.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnwire.inference.providers.openai_http import OpenAiHttp

_FRESH_SECONDS = 30.0
_AFTER_FAILURE_SECONDS = 2.0
_PATIENCE_SECONDS = 0.5


class _Entry(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    """vLLM's."""
    context_length: int | None = None
    context_window: int | None = None


class _Listing(msgspec.Struct):
    data: list[_Entry]


class ListedModels:
    """What a server serves now. A server that is away holds up nobody who wants something else."""

    def __init__(
        self, provider_id: str, http: OpenAiHttp, *, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Asks within `seconds`; `clock` is for tests."""
        self._provider_id = provider_id
        self._http = http
        self._seconds = seconds
        self._clock = clock
        self._found: list[model_pb2.Model] | None = None
        self._until = 0.0
        self._asking: asyncio.Task[None] | None = None
        self.failure: TurnwireError | None = None
        """Why the server could not be asked the last time."""

    def refresh(self) -> asyncio.Task[None]:
        """Asks the server, if nobody does so already."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name=f"models of {self._provider_id}")
        return self._asking

    async def close(self) -> None:
        """Asks no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def get(self) -> Sequence[model_pb2.Model]:
        """Returns the models; those of the last half minute at once.

        Raises:
            TurnwireError: the server cannot be asked. After a failure it gets half a second to answer.
        """
        if self._clock() >= self._until:
            asking = self.refresh()
            if self._found is None:
                await asyncio.wait([asking], timeout=_PATIENCE_SECONDS if self.failure is not None else None)
        if self.failure is not None:
            # Another caller's failure is told with this caller's own traceback.
            raise self.failure.with_traceback(None)
        return self._found or []

    async def _ask(self) -> None:
        try:
            listing = await self._listing()
        except TurnwireError as error:
            self.failure = error
            self._found = None
            self._until = self._clock() + _AFTER_FAILURE_SECONDS
        else:
            self._found = [self._model(entry) for entry in listing.data]
            self._until = self._clock() + _FRESH_SECONDS
            self.failure = None

    async def _listing(self) -> _Listing:
        body = await self._http.get("/models", seconds=self._seconds)
        try:
            return msgspec.json.decode(body, type=_Listing)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._http.failures.malformed("", body) from None

    def _model(self, entry: _Entry) -> model_pb2.Model:
        # The API does not tell what a model is for; a registration does.
        window = entry.max_model_len or entry.context_length or entry.context_window or 0
        return built_in(self._provider_id, entry.id, context_tokens=min(max(window, 0), 2**31 - 1))
