"""The failpoints of a turn's commits, by what is committed: before each kind of event, and after."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.agent.v1 import event_pb2
from turnwire.runtime.failpoints import Boundary, Failpoint

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

UNCOMMITTED = frozenset({"step_delta", "heartbeat"})
"""Deltas are stored with what comes after them, heartbeats never."""
ACCEPTANCE = frozenset({"turn_started", "turn_queued"})
"""Who accepts a turn commits these: `live/acceptance.py` has their failpoints."""
UNWRITTEN = frozenset({"turn_steered", "compaction", "sub_agent"})
"""Events and steps that this version does not write."""
BY_STEP = {"step_started": "plan", "step_completed": "result"}
"""These have failpoints for each type of step, which their field of this name tells."""

_TEXT = "text_stored"
"""Of a commit without events: so much text has come that it is stored in between."""


def _names() -> list[str]:
    names = [_TEXT]
    for kind in event_pb2.StepEvent.DESCRIPTOR.oneofs_by_name["payload"].fields:
        if kind.name in UNCOMMITTED | ACCEPTANCE | UNWRITTEN:
            continue
        if kind.name in BY_STEP:
            assert kind.message_type is not None
            types = kind.message_type.oneofs_by_name[BY_STEP[kind.name]].fields
            names.extend(f"{kind.name}.{each.name}" for each in types if each.name not in UNWRITTEN)
        else:
            names.append(kind.name)
    return names


_BOUNDARIES = {name: Boundary(f"agent.{name}") for name in _names()}


@asynccontextmanager
async def committing(events: Sequence[event_pb2.StepEvent]) -> AsyncGenerator[None]:
    """Reaches the failpoints before the commit of some events, and those after it."""
    if not Failpoint.armed:
        yield
        return
    kinds = list(dict.fromkeys(_kind(event) for event in events)) or [_TEXT]
    for kind in kinds:
        await _BOUNDARIES[kind].before.reached()
    yield
    for kind in kinds:
        await _BOUNDARIES[kind].after.reached()


def _kind(event: event_pb2.StepEvent) -> str:
    kind = event.WhichOneof("payload") or ""
    if kind not in BY_STEP:
        return kind
    return f"{kind}.{getattr(event, kind).WhichOneof(BY_STEP[kind])}"
