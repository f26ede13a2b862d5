"""Snapshots of sandboxes: which artifact each file of a session's workspace was after the last code that ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from turnwire.ids import new_id
from turnwire.tool_executor.store import workspaces as stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from turnwire.runtime.storage import Store, Transaction


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a workspace held."""

    session_id: str
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """The artifact of each path."""
    snapshot_id: str = field(default_factory=lambda: new_id("snap"))

    def after(self, made: Mapping[str, str], removed: Iterable[str]) -> Snapshot:
        """Returns the snapshot after a run that has made or changed files, and removed others."""
        files = {**self.files, **made}
        for path in removed:
            if path not in made:
                files.pop(path, None)
        return Snapshot(self.session_id, files)

    def body(self) -> bytes:
        """Returns the files as they are stored."""
        return json.dumps(self.files, sort_keys=True).encode()


class Workspaces:
    """Finds the last snapshot of a session's workspace; the journal writes it with the outcome that left it."""

    def __init__(self, store: Store) -> None:
        """Reads from `store`."""
        self._store = store

    async def latest(self, tenant: str, session_id: str) -> Snapshot | None:
        """Returns the last snapshot; None when no code of the session has ended yet."""

        async def unit(tx: Transaction) -> tuple[str, bytes] | None:
            return await stored.get(tx, tenant, session_id)

        found = await self._store.read(unit)
        if found is None:
            return None
        files: dict[str, Any] = json.loads(found[1])
        return Snapshot(session_id, files, found[0])
