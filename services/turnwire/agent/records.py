"""The records of an exported turn: written, and read back with every doubt spoken out before anything is done."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnwire.agent.turn.config import pin
from turnwire.agent.v1 import agent_pb2, event_pb2
from turnwire.agent.v1 import agent_service_pb2 as messages
from turnwire.errors import InvalidArgument
from turnwire.fold import TERMINAL_PAYLOADS, SequenceGapError, TurnFold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from turnwire.agent.v1 import turn_pb2
    from turnwire.common.v1 import message_pb2

FORMAT = 1
"""The format of records that this version writes; it reads no other."""
_BEGINNINGS = frozenset({"turn_started", "turn_queued"})


@dataclass(frozen=True, slots=True)
class Recording:
    """A turn as it was recorded, whole and unaltered."""

    header: messages.TurnRecordHeader
    events: list[event_pb2.StepEvent]
    sha256: str

    @property
    def turn(self) -> turn_pb2.Turn:
        """The state it ended in."""
        fold = TurnFold(self.header.turn_id)
        for event in self.events:
            fold.apply(event)
        return fold.turn


def written(
    header: messages.TurnRecordHeader,
    agent: agent_pb2.Agent | None,
    history: Sequence[message_pb2.Message],
    events: Sequence[event_pb2.StepEvent],
) -> Iterator[messages.TurnRecord]:
    """Yields the records of a turn, the last with their digest."""
    records = [messages.TurnRecord(header=header)]
    if agent is not None:
        records.append(messages.TurnRecord(agent=agent))
    records += [messages.TurnRecord(history=message) for message in history]
    records += [messages.TurnRecord(event=event) for event in events]
    yield from records
    yield messages.TurnRecord(end=messages.TurnRecordEnd(records=len(records), sha256=_digest(records)))


def read(records: Sequence[messages.TurnRecord]) -> Recording:
    """Returns the turn of some records.

    Raises:
        InvalidArgument: they are of another format, incomplete, altered, or no log of a turn that has ended.
    """
    if not records or records[0].WhichOneof("record") != "header":
        raise _refused("record", "the first record is no header: this is no exported turn")
    header = records[0].header
    if header.format != FORMAT:
        raise _refused(
            "record.header.format",
            f"is {header.format}, and this version reads format {FORMAT}:"
            f" use the Turnwire {header.turnwire_version or 'that wrote it'}",
        )
    if records[-1].WhichOneof("record") != "end":
        raise _refused("record", "the end is missing: the export was cut")
    end, body = records[-1].end, records[:-1]
    if end.records != len(body):
        raise _refused("record.end.records", f"is {end.records}, and {len(body)} came: some are missing, or too many")
    sha256 = _digest(body)
    if end.sha256 != sha256:
        raise _refused("record.end.sha256", "is not that of what came: records were altered")
    events = [record.event for record in body if record.WhichOneof("record") == "event"]
    _check_log(header, events)
    return Recording(header, events, sha256)


def _check_log(header: messages.TurnRecordHeader, events: Sequence[event_pb2.StepEvent]) -> None:
    if not events or events[0].WhichOneof("payload") not in _BEGINNINGS:
        raise _refused("record.event", "the log does not begin with the start of a turn")
    fold = TurnFold(header.turn_id)
    for event in events:
        if event.turn_id != header.turn_id:
            raise _refused("record.event.turn_id", f"event {event.sequence} is of another turn, {event.turn_id}")
        if fold.finished:
            raise _refused("record.event", f"event {event.sequence} comes after the end of the turn")
        if event.first_sequence != fold.last_sequence + 1 or event.sequence < event.first_sequence:
            raise _refused("record.event.sequence", str(SequenceGapError(fold.last_sequence + 1, event.first_sequence)))
        fold.apply(event)
    if events[-1].WhichOneof("payload") not in TERMINAL_PAYLOADS:
        raise _refused("record.event", "the log has no end: only turns that have ended are exported")
    if pin(header.config).digest != fold.turn.config_digest:
        raise _refused("record.header.config", "is not the configuration that the turn ran under")


def _digest(records: Iterable[messages.TurnRecord]) -> str:
    digest = hashlib.sha256()
    for record in records:
        body = record.SerializeToString(deterministic=True)
        digest.update(len(body).to_bytes(8))
        digest.update(body)
    return digest.hexdigest()


def _refused(field: str, why: str) -> InvalidArgument:
    return InvalidArgument.one(field, why)
