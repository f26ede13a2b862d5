"""What was said in a session before a turn, in order of acceptance, through its forks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from turnwire.agent.log.reading import folded
from turnwire.agent.store import events, sessions, turns
from turnwire.agent.turn.transcript import past_messages
from turnwire.common.v1 import message_pb2
from turnwire.fold import TERMINAL_STATUSES

if TYPE_CHECKING:
    from turnwire.runtime.storage import Store, Transaction

_CACHE_BYTES = 32 * 1024 * 1024


class History:
    """Reads histories; ended turns do not change, so their messages are kept for the next turn."""

    def __init__(self, store: Store) -> None:
        """Reads from a store; keeps at most 32 MiB of messages."""
        self._store = store
        # As bytes: a message keeps the whole turn alive that it is a part of.
        self._cache: OrderedDict[tuple[str, str], tuple[bytes, ...]] = OrderedDict()
        self._bytes = 0
        # Reads run in the store's threads.
        self._lock = threading.Lock()

    async def before(self, tenant: str, session_id: str, ordinal: int) -> list[message_pb2.Message]:
        """Returns the messages of the session's turns with ordinals below `ordinal`, the forked-from ones first."""

        async def unit(tx: Transaction) -> list[tuple[bytes, ...]]:
            return await self._read(tx, tenant, session_id, ordinal - 1)

        return [message_pb2.Message.FromString(body) for turn in await self._store.read(unit) for body in turn]

    def forget(self, tenant: str, turn_id: str) -> None:
        """Drops a deleted turn."""
        with self._lock:
            entry = self._cache.pop((tenant, turn_id), None)
            if entry is not None:
                self._bytes -= _size(entry)

    async def _read(self, tx: Transaction, tenant: str, session_id: str, up_to: int) -> list[tuple[bytes, ...]]:
        spans: list[tuple[str, int]] = []
        origin: tuple[str, int] | None = (session_id, up_to)
        while origin is not None:
            spans.append(origin)
            session = await sessions.get(tx, tenant, origin[0])
            fork = session.forked_from if session is not None and session.HasField("forked_from") else None
            origin = (fork.session_id, fork.ordinal) if fork is not None else None
        result: list[tuple[bytes, ...]] = []
        for span_session, span_end in reversed(spans):
            for row in await turns.of_session(tx, tenant, span_session, span_end):
                if row.status in TERMINAL_STATUSES:
                    result.append(await self._messages(tx, tenant, row.turn_id))
        return result

    async def _messages(self, tx: Transaction, tenant: str, turn_id: str) -> tuple[bytes, ...]:
        key = (tenant, turn_id)
        with self._lock:
            cached = self._cache.get(key)
            if cached is not None:
                self._cache.move_to_end(key)
                return cached
        turn = folded(turn_id, await events.of_turn(tx, tenant, turn_id))
        messages = tuple(message.SerializeToString() for message in past_messages(turn))
        with self._lock:
            if key not in self._cache:
                self._cache[key] = messages
                self._bytes += _size(messages)
            while self._bytes > _CACHE_BYTES:
                _, dropped = self._cache.popitem(last=False)
                self._bytes -= _size(dropped)
        return messages


def _size(messages: tuple[bytes, ...]) -> int:
    """What an entry takes, in bytes; an object has about a hundred beside its content."""
    return 400 + sum(100 + len(message) for message in messages)
