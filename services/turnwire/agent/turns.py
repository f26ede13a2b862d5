"""Turns and steps, read and kept: the running of them is in `live`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.log.reading import folded
from turnwire.agent.store import events, requests, turns
from turnwire.agent.v1 import step_pb2, turn_pb2
from turnwire.errors import NotFound, ResourceInUse
from turnwire.fold import TERMINAL_STATUSES
from turnwire.runtime.paging import decode_position, encode_position, page_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.turn.history import History
    from turnwire.runtime.storage import Store, Transaction


class Turns:
    """Keeps the turns of all tenants."""

    def __init__(self, store: Store, live: LiveTurns, history: History) -> None:
        """Reads running turns from `live`, all others from the store."""
        self._store = store
        self._live = live
        self._history = history

    async def get(self, tenant: str, turn_id: str) -> turn_pb2.Turn:
        """Returns a turn with its steps, as far as its events may be seen.

        Raises:
            NotFound: there is no such turn.
        """
        live = self._live.get(tenant, turn_id)
        if live is not None and (live.task is None or live.log.dark):
            live = None  # what counts is in the store

        async def unit(tx: Transaction) -> tuple[turns.TurnRow, turn_pb2.Turn] | None:
            row = await turns.get(tx, tenant, turn_id)
            if row is None:
                return None
            if live is not None:
                return row, turn_pb2.Turn()
            return row, folded(turn_id, await events.of_turn(tx, tenant, turn_id))

        found = await self._store.read(unit)
        if found is None:
            raise NotFound("turn", turn_id)
        row, turn = found
        if live is not None:
            turn.CopyFrom(live.log.fold.turn)
        return _labelled(turn, row)

    async def page(
        self, tenant: str, session_id: str, statuses: Sequence[int], size: int, token: str
    ) -> tuple[list[turn_pb2.Turn], str]:
        """Returns a page of the turns, without their steps, and the token of the next."""
        limit = page_size(size)
        created, ordinal, turn_id = decode_position(token, (-1, 0, ""))

        async def unit(tx: Transaction) -> tuple[list[turns.TurnRow], list[turn_pb2.Turn]]:
            position = (int(created), int(ordinal), str(turn_id))
            rows = await turns.page(tx, tenant, session_id, list(statuses), position, limit + 1)
            states = [folded(row.turn_id, await events.of_turn(tx, tenant, row.turn_id)) for row in rows[:limit]]
            return rows, states

        rows, states = await self._store.read(unit)
        result = [_labelled(state, row) for row, state in zip(rows, states, strict=False)]
        for turn in result:
            del turn.steps[:]
        if len(rows) <= limit:
            return result, ""
        last = rows[limit - 1]
        return result, encode_position(last.create_time, last.ordinal, last.turn_id)

    async def relabel(self, tenant: str, turn_id: str, metadata: dict[str, str]) -> turn_pb2.Turn:
        """Changes the labels of a turn; they are the one thing of a turn that is not in its log."""

        async def unit(tx: Transaction) -> None:
            if await turns.get(tx, tenant, turn_id) is None:
                raise NotFound("turn", turn_id)
            labels = turn_pb2.Turn(metadata=metadata).SerializeToString(deterministic=True)
            await turns.set_metadata(tx, tenant, turn_id, labels)

        await self._store.write(unit)
        turn = await self.get(tenant, turn_id)
        del turn.steps[:]
        return turn

    async def delete(self, tenant: str, turn_id: str) -> None:
        """Deletes a turn that has ended.

        Raises:
            ResourceInUse: it has not ended.
        """

        async def unit(tx: Transaction) -> None:
            row = await turns.get(tx, tenant, turn_id)
            if row is None:
                raise NotFound("turn", turn_id)
            if row.status not in TERMINAL_STATUSES:
                raise ResourceInUse(
                    "turn", turn_id, used_by="its run", told=f"Turn {turn_id} has not ended: cancel it first."
                )
            await turns.delete(tx, tenant, turn_id)
            await requests.bury(tx, tenant, turn_id, requests.DELETED)

        await self._store.write(unit)
        self._history.forget(tenant, turn_id)

    async def step(self, tenant: str, turn_id: str, step_id: str) -> step_pb2.Step:
        """Returns one step of a turn."""
        turn = await self.get(tenant, turn_id)
        for step in turn.steps:
            if step.step_id == step_id:
                return step
        raise NotFound("step", step_id, available=[step.step_id for step in turn.steps])

    async def steps(self, tenant: str, turn_id: str, size: int, token: str) -> tuple[list[step_pb2.Step], str]:
        """Returns a page of the steps of a turn and the token of the next."""
        limit = page_size(size)
        (start,) = decode_position(token, (0,))
        steps = (await self.get(tenant, turn_id)).steps
        first = max(0, int(start))
        rest = steps[first : first + limit]
        following = first + limit
        return list(rest), encode_position(following) if following < len(steps) else ""


def _labelled(turn: turn_pb2.Turn, row: turns.TurnRow) -> turn_pb2.Turn:
    if row.metadata is not None:
        turn.metadata.clear()
        turn.metadata.update(turn_pb2.Turn.FromString(row.metadata).metadata)
    return turn
