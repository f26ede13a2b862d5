"""What other replicas tell: one connection that listens, made anew when it is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from turnwire.runtime.storage.postgres.server import is_away

if TYPE_CHECKING:
    from turnwire.runtime.storage.listeners import Listeners
    from turnwire.runtime.storage.postgres.server import PostgresServer

_log = structlog.get_logger(__name__)
_ALIVE_SECONDS = 10.0
"""So often the connection is tried: one whose other end is gone would be silent for ever."""
_LONGEST_PAUSE = 2.0


class Hearing:
    """Passes notices on to listeners, from the first that there is until the store closes."""

    def __init__(self, server: PostgresServer, listeners: Listeners) -> None:
        """Hears nothing yet."""
        self._server = server
        self._listeners = listeners
        self._task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        """Set while notices are heard."""

    def begin(self) -> None:
        """Begins to hear, if it has not begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._hear_always(), name=f"{self._server.schema} notices")

    async def close(self) -> None:
        """Hears no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _hear_always(self) -> None:
        pause = 0.05
        while True:
            try:
                connection = await self._server.connect()
                try:
                    await self._hear(connection)
                finally:
                    self.ready.clear()
                    connection.terminate()
            except Exception as error:
                if not is_away(error):
                    _log.exception("store_notices_failed", service=self._server.service)
            else:
                pause = 0.05
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _hear(self, connection: Any) -> None:
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        await connection.add_listener(self._server.schema, self._heard)
        self.ready.set()
        while not ended.is_set():
            try:
                await asyncio.wait_for(ended.wait(), _ALIVE_SECONDS)
            except TimeoutError:
                await connection.execute("SELECT 1")

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        topic, _, text = payload.partition("\n")
        self._listeners.tell(topic, text)
