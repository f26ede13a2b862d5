"""What may come next in a turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnwire.agent.v1 import event_pb2, step_pb2


@dataclass(frozen=True, slots=True)
class Record:
    """These events happen; nothing outside the log is touched."""

    events: tuple[event_pb2.StepEvent, ...]


@dataclass(frozen=True, slots=True)
class RunInference:
    """The model is called for a step that has started."""

    step: step_pb2.Step


@dataclass(frozen=True, slots=True)
class RunShields:
    """Shields judge the turn's input, in a step that has started."""

    step: step_pb2.Step


@dataclass(frozen=True, slots=True)
class RunRetrieval:
    """Memory banks are searched for a step that has started."""

    step: step_pb2.Step


@dataclass(frozen=True, slots=True)
class RunTools:
    """The calls of a step that have no result yet, and are not the caller's to run, are run at once."""

    step: step_pb2.Step


@dataclass(frozen=True, slots=True)
class Pause:
    """The turn waits for input; no process is needed for that."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The turn has ended."""


Work = RunInference | RunShields | RunRetrieval | RunTools
"""What needs somebody outside the log."""

Action = Record | Work | Pause | Stop
