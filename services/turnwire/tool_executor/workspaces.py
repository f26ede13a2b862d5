"""Snapshots of sandboxes: which artifact each file of a session's workspace was after the last code that ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from turnwire.ids import new_id
from turnwire.tool_executor.store import workspaces as stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from turnwire.runtime.storage import Store, Transaction

NOT_KEPT = ""
"""Stands for the artifact of a file that could not be kept: what was there before is not what is there now."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run of code has changed in the workspace of its session."""

    session_id: str
    made: Mapping[str, str]
    """The artifact of each path that was made or changed, or `NOT_KEPT`."""
    removed: Iterable[str] = ()
    snapshot_id: str = field(default_factory=lambda: new_id("snap"))
    """Names the workspace with the changes in it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a workspace held."""

    snapshot_id: str
    files: Mapping[str, str]
    """The artifact of each path, or `NOT_KEPT`."""


async def latest(tx: Transaction, tenant: str, session_id: str) -> Snapshot | None:
    """Returns the last snapshot; None when no code of the session has ended yet."""
    found = await stored.get(tx, tenant, session_id)
    return Snapshot(found[0], json.loads(found[1])) if found is not None else None


async def note(tx: Transaction, tenant: str, changes: Changes) -> None:
    """Makes a snapshot of the last one and of changes: two runs that end at once each leave theirs."""
    last = await latest(tx, tenant, changes.session_id)
    files = dict(last.files) if last is not None else {}
    for path in changes.removed:
        files.pop(path, None)
    body = json.dumps({**files, **changes.made}, sort_keys=True).encode()
    await stored.put(tx, tenant, changes.session_id, changes.snapshot_id, body)


class Workspaces:
    """Finds the last snapshot of a session's workspace; the journal writes it with the outcome that left it."""

    def __init__(self, store: Store) -> None:
        """Reads from `store`."""
        self._store = store

    async def latest(self, tenant: str, session_id: str) -> Snapshot | None:
        """Returns the last snapshot; None when no code of the session has ended yet."""
        return await self._store.read(lambda tx: latest(tx, tenant, session_id))
