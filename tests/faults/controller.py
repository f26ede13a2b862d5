"""The other side of the failpoints: counts what processes reach, and hits one where a fault says so."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path


@dataclass
class Hit:
    """A process that stands at a failpoint; it goes on when it is let go, if it lives."""

    failpoint: str
    pid: int
    _release: Callable[[], None]

    def release(self) -> None:
        """Lets the process go on."""
        self._release()


@dataclass
class Trigger:
    """Strikes at the so-many-th time, from now, that any process reaches a failpoint."""

    failpoint: str
    nth: int
    strike: Callable[[Hit], Awaitable[None]]
    """Has the fault begin and end; whether it lets the process go is its own affair."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ended_at: float = 0.0
    """When the fault ended, by the clock of the loop."""
    begun: bool = False
    failure: BaseException | None = None
    """Why the fault could not be made: a defect of the test."""


class Controller:
    """Answers processes that ask whether they may go on."""

    def __init__(self, socket: Path) -> None:
        """Listens at `socket`; use `controlling`."""
        self.socket = socket
        self.counts: Counter[str] = Counter()
        """How often each failpoint was reached since it was last counted anew."""
        self.totals: Counter[str] = Counter()
        """How often each was reached in all."""
        self._trigger: Trigger | None = None
        self._strikes: set[asyncio.Task[None]] = set()
        self._readers: set[asyncio.Task[None]] = set()

    def arm(self, trigger: Trigger) -> None:
        """Has a fault strike; replaces one that has not yet."""
        self._trigger = trigger

    def count_anew(self) -> None:
        """Forgets what was reached, but for the totals."""
        self.counts.clear()

    def disarm(self) -> None:
        """Lets everything pass."""
        self._trigger = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one process until it is gone."""
        task = asyncio.current_task()
        assert task is not None
        self._readers.add(task)
        try:
            pid = 0
            while line := await reader.readline():
                message = json.loads(line)
                if "failpoint" not in message:
                    pid = int(message["pid"])
                    continue
                self._take(Hit(message["failpoint"], pid, _answering(writer, message["id"])))
        except (ConnectionError, json.JSONDecodeError):
            pass  # killed, perhaps in the middle of a line
        finally:
            self._readers.discard(task)
            writer.close()

    async def close(self) -> None:
        """Ends what is under way."""
        for task in [*self._strikes, *self._readers]:
            task.cancel()
        await asyncio.gather(*self._strikes, *self._readers, return_exceptions=True)

    def _take(self, hit: Hit) -> None:
        self.counts[hit.failpoint] += 1
        self.totals[hit.failpoint] += 1
        trigger = self._trigger
        if trigger is None or trigger.failpoint != hit.failpoint:
            hit.release()
            return
        trigger.nth -= 1
        if trigger.nth > 0:
            hit.release()
            return
        self._trigger = None
        trigger.begun = True
        task = asyncio.create_task(_struck(trigger, hit), name=f"fault at {hit.failpoint}")
        self._strikes.add(task)
        task.add_done_callback(self._strikes.discard)


async def _struck(trigger: Trigger, hit: Hit) -> None:
    try:
        await trigger.strike(hit)
    except Exception as error:
        trigger.failure = error
    finally:
        trigger.ended_at = asyncio.get_running_loop().time()
        trigger.ended.set()


def _answering(writer: asyncio.StreamWriter, number: int) -> Callable[[], None]:
    def release() -> None:
        if not writer.is_closing():
            writer.write(json.dumps({"id": number}).encode() + b"\n")

    return release


@asynccontextmanager
async def controlling(socket: Path) -> AsyncGenerator[Controller]:
    """Gives a controller that listens at `socket`, a path for `TURNWIRE_FAILPOINTS`."""
    controller = Controller(socket)
    server = await asyncio.start_unix_server(controller.serve, socket)
    try:
        yield controller
    finally:
        server.close()
        await controller.close()
