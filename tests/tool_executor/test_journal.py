"""The journal by itself: who may send a call, who may end it, and what two that end at once leave."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.tool_executor.calling import CANCELLED, DISPATCHED, PREPARED, SUCCEEDED, UNKNOWN
from turnwire.common.v1 import message_pb2
from turnwire.errors import ResourceInUse
from turnwire.runtime.storage import SqliteStore
from turnwire.tool_executor.journal import Ask, Journal
from turnwire.tool_executor.store.schema import SCHEMA
from turnwire.tool_executor.workspaces import Changes, Workspaces

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

KEY = ("t", "turn_1", "call_1")


@asynccontextmanager
async def _store(folder: Path) -> AsyncGenerator[SqliteStore]:
    store = await SqliteStore.open(folder / "tool_executor.sqlite3", SCHEMA)
    try:
        yield store
    finally:
        await store.close()


def _ask(call_id: str = "call_1", *, retry_of: str = "") -> Ask:
    return Ask(("t", "turn_1", call_id), "photogen", "{}", "sess_1", owner_epoch=1, retry_of=retry_of)


async def _claimed(journal: Journal, call_id: str = "call_1", *, idempotent: bool = False) -> bool:
    _, ours = await journal.claim(_ask(call_id), tool_id="photogen", idempotent=idempotent)
    return ours


def _result(text: str) -> message_pb2.ToolResult:
    return message_pb2.ToolResult(call_id="call_1", content=text)


async def test_a_call_that_another_process_has_taken_up_is_neither_sent_nor_ended_by_the_first(tmp_path: Path):
    async with _store(tmp_path) as store:
        first, second = Journal(store, "first"), Journal(store, "second")
        await first.hold(0.0)  # was not heard of in time
        await second.hold(60.0)
        assert await _claimed(first)
        assert await _claimed(second)

        assert not await first.dispatched(KEY)
        assert PREPARED == (await second.get(KEY)).state
        assert await second.dispatched(KEY)
        late = await first.ended(KEY, SUCCEEDED, _result("of the first"))
        assert (DISPATCHED, None) == (late.state, late.result)
        noted = await second.ended(KEY, SUCCEEDED, _result("of the second"))

    assert (SUCCEEDED, _result("of the second").SerializeToString()) == (noted.state, noted.result)


@pytest.mark.parametrize("idempotent", [False, True], ids=["once", "again"])
async def test_a_call_is_sent_once_by_its_process_and_has_the_first_outcome(tmp_path: Path, idempotent: bool):
    async with _store(tmp_path) as store:
        journal = Journal(store, "first")
        await journal.hold(60.0)
        assert await _claimed(journal, idempotent=idempotent)

        assert [True, False] == [await journal.dispatched(KEY) for _ in range(2)]
        rows = [await journal.ended(KEY, SUCCEEDED, _result(text)) for text in ("first", "second")]
        assert not await journal.dispatched(KEY)

    assert [_result("first").SerializeToString()] * 2 == [row.result for row in rows]


async def test_a_call_that_somebody_wants_stopped_elsewhere_is_not_sent_any_more(tmp_path: Path):
    async with _store(tmp_path) as store:
        first, second = Journal(store, "first"), Journal(store, "second")
        await first.hold(60.0)
        assert await _claimed(first)
        seen = await second.fence(KEY, 1, here=False)

        assert (True, PREPARED) == (seen.elsewhere, seen.row.state)
        assert [KEY] == await first.to_stop()
        assert not await first.dispatched(KEY)


@pytest.mark.parametrize("sent", [False, True], ids=["prepared", "sent"])
async def test_a_call_is_repeated_when_the_process_that_had_it_is_gone_and_not_before(tmp_path: Path, *, sent: bool):
    async with _store(tmp_path) as store:
        first, second = Journal(store, "first"), Journal(store, "second")
        await first.hold(60.0)
        assert await _claimed(first)
        assert not sent or await first.dispatched(KEY)
        again = _ask("call_2", retry_of="call_1")
        for journal in (first, second):
            with pytest.raises(ResourceInUse, match="it still runs"):
                await journal.claim(again, tool_id="photogen", idempotent=False)
        await first.hold(0.0)
        _, ours = await second.claim(again, tool_id="photogen", idempotent=False)

        assert ours
        assert (UNKNOWN if sent else CANCELLED) == (await second.get(KEY)).state
        assert not await first.dispatched(KEY)


async def test_the_files_of_two_runs_that_end_at_once_are_both_in_the_last_snapshot(tmp_path: Path):
    async with _store(tmp_path) as store:
        journal, workspaces = Journal(store, "first"), Workspaces(store)
        await journal.hold(60.0)
        calls = ("call_1", "call_2", "call_3")
        for call_id in calls:
            assert await _claimed(journal, call_id)
        # As the runs see the workspace: none knows what the others have changed.
        changed = [
            Changes("sess_1", {"one.txt": "art_1", "gone.txt": "art_2"}),
            Changes("sess_1", {"two.txt": "art_3"}),
            Changes("sess_1", {}, {"gone.txt"}),
        ]
        rows = [
            await journal.ended(("t", "turn_1", call_id), SUCCEEDED, _result(""), changes)
            for call_id, changes in zip(calls, changed, strict=True)
        ]
        # Only the outcome that counts leaves a snapshot.
        await journal.ended(KEY, SUCCEEDED, _result(""), Changes("sess_1", {"late.txt": "art_4"}))
        last = await workspaces.latest("t", "sess_1")

    assert [each.snapshot_id for each in changed] == [row.workspace_snapshot for row in rows]
    assert last is not None
    assert changed[-1].snapshot_id == last.snapshot_id
    assert {"one.txt": "art_1", "two.txt": "art_3"} == last.files
