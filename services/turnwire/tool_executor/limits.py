"""How long the parts of an execution may take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnwire.tool_executor.v1 import tool_executor_service_pb2

LONGEST = 3600.0
"""No execution takes longer, in seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: for connecting, until the first output, between two pieces of it, and in all."""

    connect: float
    first_byte: float
    silence: float
    total: float


def with_wishes(defaults: Limits, wanted: tool_executor_service_pb2.ExecutionLimits) -> Limits:
    """Returns the limits of a tool with those that its caller has set."""
    wishes = {descriptor.name: duration.seconds + duration.nanos / 1e9 for descriptor, duration in wanted.ListFields()}
    return replace(defaults, **wishes)


def wanted_total(wanted: tool_executor_service_pb2.ExecutionLimits) -> float | None:
    """Returns the seconds that a caller allows in all; None when it says nothing."""
    return wanted.total.seconds + wanted.total.nanos / 1e9 if wanted.HasField("total") else None


class LimitPassed(Exception):
    """An execution took too long."""

    def __init__(self, limit: str, seconds: float) -> None:
        """Names the limit, as a field of `ExecutionLimits`, and its seconds."""
        super().__init__(limit)
        self.limit = limit
        self.seconds = seconds

    @property
    def told(self) -> str:
        """What a model reads of it."""
        return _WORDS[self.limit].format(seconds=self.seconds)


_WORDS = {
    "connect": "it could not begin within {seconds:g} s",
    "first_byte": "it gave nothing within {seconds:g} s",
    "silence": "it was silent for {seconds:g} s",
    "total": "it took longer than {seconds:g} s",
}
