"""A recorded turn, run again: its decisions are made anew on its recorded answers, and must be what was recorded.

The answers of models, tools, shields, banks and callers are taken from the log. What the loop decides itself (which
step starts, with which plan; pauses, refusals, the end) is asked of `next_action`, and compared field by field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from turnwire.agent.turn.actions import Pause, Record, Stop
from turnwire.agent.turn.config import pin
from turnwire.agent.turn.next import next_action
from turnwire.agent.turn.steps import is_nested, main_step
from turnwire.agent.v1 import event_pb2
from turnwire.fold import TurnFold, fill_output

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from turnwire.agent.records import Recording

_FROM_OUTSIDE = frozenset({"turn_recovered", "turn_cancelled", "turn_steered", "step_progress"})
"""What may come at any moment, whatever the loop does."""
_OF_WORK = frozenset(
    {
        *("step_delta", "step_completed", "step_failed", "step_restarted"),
        *("tool_call_started", "tool_call_completed", "turn_failed"),
    }
)
_OF_PAUSE = frozenset({"turn_input_received", "turn_started", "turn_failed"})


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a decision is not what was recorded."""

    sequence: int
    """The number of the recorded event; of the last one, when one is missing after it."""
    field: str
    expected: str
    """What was recorded."""
    got: str
    """What this version decides."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay."""

    decisions: int
    """So many decisions were the same."""
    difference: Difference | None


def replay(recording: Recording) -> Replayed:
    """Makes the decisions of a turn again, until one differs."""
    config = pin(recording.header.config)
    fold = TurnFold(recording.header.turn_id)
    decisions = 0
    decided: list[event_pb2.StepEvent] = []
    for number, event in enumerate(recording.events):
        kind = event.WhichOneof("payload") or ""
        if number and kind not in _FROM_OUTSIDE:
            action = None if decided else next_action(fold.turn, config)
            if isinstance(action, Record):
                decided = list(action.events)
            if decided and not _is_nested(fold, event):
                difference = _compared(fold, event, decided.pop(0))
                if difference is not None:
                    return Replayed(decisions, difference)
                decisions += 1
            elif not decided and not _fits(fold, event, action):
                return Replayed(decisions, Difference(event.sequence, "payload", kind, _told(action)))
        elif kind == "turn_cancelled":
            decided = []
        fold.apply(event)
    action = next_action(fold.turn, config)
    if not isinstance(action, Stop):
        return Replayed(decisions, Difference(fold.last_sequence, "payload", "the end of the log", _told(action)))
    return Replayed(decisions, None)


def _fits(fold: TurnFold, event: event_pb2.StepEvent, action: object) -> bool:
    """Returns whether an event is an answer to what the turn does or waits for."""
    kind = event.WhichOneof("payload") or ""
    if isinstance(action, Stop):
        return False
    if isinstance(action, Pause):
        return kind in _OF_PAUSE
    return _is_nested(fold, event) or (kind in _OF_WORK and event.step_id in {"", _main(fold)})


def _main(fold: TurnFold) -> str:
    step = main_step(fold.turn)
    return step.step_id if step is not None else ""


def _is_nested(fold: TurnFold, event: event_pb2.StepEvent) -> bool:
    """Returns whether an event is of shields within another step: its worker asks them."""
    if event.WhichOneof("payload") == "step_started":
        alone = TurnFold(event.turn_id)
        single = event_pb2.StepEvent()
        single.CopyFrom(event)
        single.first_sequence = single.sequence = 1
        alone.apply(single)
        return is_nested(alone.turn.steps[0])
    step = fold.step(event.step_id)
    return step is not None and is_nested(step)


def _compared(fold: TurnFold, recorded: event_pb2.StepEvent, decided: event_pb2.StepEvent) -> Difference | None:
    expected, got = _bare(fold, recorded), _bare(fold, decided)
    found = _first_difference(expected, got, "")
    return Difference(recorded.sequence, *found) if found is not None else None


def _bare(fold: TurnFold, event: event_pb2.StepEvent) -> event_pb2.StepEvent:
    """Returns an event without what is new each time: numbers, times, and the ids that are minted."""
    bare = event_pb2.StepEvent()
    bare.CopyFrom(event)
    for name in ("first_sequence", "sequence", "event_time"):
        bare.ClearField(name)
    match bare.WhichOneof("payload"):
        case "step_started":
            bare.step_id = ""
        case "turn_awaiting_input":
            bare.turn_awaiting_input.awaited_input.ClearField("expire_time")
        case "turn_completed":
            completed = bare.turn_completed
            source = fold.step(completed.output_step_id)
            if source is not None and not completed.output.parts:
                fill_output(completed.output, source)
        case _:
            pass
    return bare


def _first_difference(expected: Message, got: Message, path: str) -> tuple[str, str, str] | None:
    """Returns (field, expected, got) of the first field that differs."""
    if expected == got:
        return None
    for field in expected.DESCRIPTOR.fields:
        name = f"{path}.{field.name}" if path else field.name
        one, other = _value(expected, field.name), _value(got, field.name)
        if one == other and _set(expected, field.name) == _set(got, field.name):
            continue
        if field.message_type is None or not (_set(expected, field.name) and _set(got, field.name)):
            return _outer(name, expected, got, field.name)
        if hasattr(one, "SerializeToString"):
            return _first_difference(one, other, name) or (name, _shown(one), _shown(other))
        if not field.message_type.GetOptions().map_entry and len(one) == len(other):
            for index, (left, right) in enumerate(zip(one, other, strict=True)):
                if left != right:
                    return _first_difference(left, right, f"{name}[{index}]") or (name, _shown(left), _shown(right))
        return name, _shown(one), _shown(other)
    return path or "event", _shown(expected), _shown(got)


def _outer(name: str, expected: Message, got: Message, field: str) -> tuple[str, str, str]:
    told: list[str] = []
    for message in (expected, got):
        told.append(_shown(_value(message, field)) if _set(message, field) else _instead(message, field))
    return name, told[0], told[1]


def _instead(message: Message, field: str) -> str:
    """Names what stands in place of a field that is not set."""
    oneof = message.DESCRIPTOR.fields_by_name[field].containing_oneof
    chosen = message.WhichOneof(oneof.name) if oneof is not None else None
    return chosen or "nothing"


def _value(message: Message, name: str) -> Any:
    return getattr(message, name)


def _set(message: Message, name: str) -> bool:
    return any(field.name == name for field, _ in message.ListFields())


def _shown(value: Any) -> str:
    if hasattr(value, "SerializeToString"):
        text = json_format.MessageToJson(value, preserving_proto_field_name=True, indent=None)
    elif hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        text = "[" + ", ".join(_shown(each) for each in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= 300 else text[:297] + "…"


def _told(action: object) -> str:
    """Names what the loop does."""
    match action:
        case Record():
            return action.events[0].WhichOneof("payload") or "nothing"
        case Stop():
            return "nothing: the turn has ended"
        case Pause():
            return "waiting for input"
        case _:
            return type(action).__name__
