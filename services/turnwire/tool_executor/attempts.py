"""A call is given to its tool, and given again after a failure that passes, where that does no harm."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import error_pb2
from turnwire.errors import TurnwireError
from turnwire.runtime.retrying import delay_of
from turnwire.tool_executor.tools.port import ATTEMPTS, NeverSent, OutcomeLost, Output, Progress, Sending

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.tool_executor.limits import Clock
    from turnwire.tool_executor.tools.port import Call, Piece, Provider

_log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 3
"""How often a tool is given a call, while its failures are of the kind that passes."""
_PASSING = frozenset(
    {
        error_pb2.ERROR_REASON_OVERLOADED,
        error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
        error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED,
    }
)


async def attempts(provider: Provider, call: Call, clock: Clock) -> AsyncGenerator[Piece]:
    """Yields what a tool gives to a call, within its limits; `Sending` once, and progress with each further attempt.

    Given again is a call that never reached the tool, and any one of an idempotent tool that has shown no output yet.

    Raises:
        NeverSent, OutcomeLost, TurnwireError: as the last attempt.
        LimitPassed: a limit has run out. Attempts share the time that there is in all.
    """
    sent = shown = False
    attempt = 1
    while True:
        try:
            async with aclosing(_attempt(provider, call, clock)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Sending):
                        if sent:
                            continue
                        sent = True
                    shown = shown or isinstance(piece, Output)
                    yield piece
            return
        except (NeverSent, OutcomeLost, TurnwireError) as failure:
            error = failure if isinstance(failure, TurnwireError) else failure.error
            harmless = not sent or call.tool.idempotent or isinstance(failure, NeverSent)
            if error is None or error.reason not in _PASSING or shown or not harmless or attempt >= MAX_ATTEMPTS:
                raise
            delay = delay_of(error, attempt)
            if delay >= clock.left:
                raise
        attempt += 1
        _log.info("tool_asked_again", attempt=attempt, error=error.message, delay_seconds=round(delay, 3))
        yield Progress(attempt, MAX_ATTEMPTS, ATTEMPTS)
        await asyncio.sleep(delay)


async def _attempt(provider: Provider, call: Call, clock: Clock) -> AsyncGenerator[Piece]:
    clock.connecting()
    async with aclosing(provider.execute(call)) as pieces:
        while True:
            piece: Piece | None = await clock.within(anext(pieces, None))
            if piece is None:
                return
            yield piece
            match piece:
                case Sending():
                    clock.sending()
                case Output() | Progress():
                    clock.heard()
                case _:
                    pass  # it was the last
