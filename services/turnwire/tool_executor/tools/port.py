"""What the tool executor service asks of a provider of tools, and what it gives to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from turnwire.common.v1 import inspect_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from turnwire.common.v1 import error_pb2, message_pb2
    from turnwire.errors import TurnwireError
    from turnwire.runtime.directory import Directory
    from turnwire.tool_executor.artifacts import Artifacts
    from turnwire.tool_executor.limits import Limits
    from turnwire.tool_executor.v1 import tool_pb2
    from turnwire.tool_executor.workspaces import Changes, Workspaces

State = inspect_service_pb2.Provider.State


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What there is around a provider."""

    directory: Directory
    artifacts: Artifacts
    workspaces: Workspaces
    allow_hosts: Sequence[str] = ()
    """Hosts of the operator's own that may be fetched from although they are not public."""


@dataclass(frozen=True, slots=True)
class File:
    """A file for a tool, with a plain name."""

    name: str
    data: bytes
    mime_type: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, its arguments held against the schema."""

    tenant: str
    session_id: str
    turn_id: str
    call_id: str
    tool: tool_pb2.Tool
    arguments: Mapping[str, Any]
    files: Sequence[File]
    authorization: str
    limits: Limits
    wanted_total: float | None
    """What the caller allows in all; None when it says nothing."""
    heard: Callable[[], None]
    """To be called when something has come from the tool that is no piece of output yet."""


@dataclass(frozen=True, slots=True)
class Sending:
    """What comes next is sent to the tool. Everything before can be done again, nothing after."""


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output, whole characters."""

    text: str


ATTEMPTS = "attempts"
"""The unit of progress that tells of further attempts: each of them is told, other progress only as far as it is."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much is done; a total of 0 is not known."""

    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model gets to read; a failure is the tool's own."""

    content: str
    failure: error_pb2.Failure | None = None
    attachments: Sequence[message_pb2.Attachment] = field(default_factory=tuple)
    changes: Changes | None = None
    """What it has changed in the sandbox of the session."""


Piece = Sending | Output | Progress | Answer


class OutcomeLost(Exception):
    """The tool went away after it was sent its call: nobody knows what it did."""

    def __init__(self, why: str, error: TurnwireError | None = None) -> None:
        """`error` is what a call has failed with where doing it twice does no harm."""
        super().__init__(why)
        self.error = error


class NeverSent(Exception):
    """Nothing has reached the tool: it can be asked again, whatever it does."""

    def __init__(self, error: TurnwireError) -> None:
        """`error` says why."""
        super().__init__(error.message)
        self.error = error


class Provider(Protocol):
    """Executes tools. A provider is one module with one class and one pydantic `Config`.

    Failures are errors of `turnwire.errors`. Whoever stops iterating an execution closes it (`aclose`), and the
    provider then stops it at once.
    """

    provider_id: str
    defaults: Limits
    """How long its executions may take, where the caller says nothing."""
    takes_files: bool
    """True when attachments reach its tools."""
    takes_authorization: bool
    """True when the caller's credential reaches its tools."""

    async def start(self, surroundings: Surroundings) -> None:
        """Begins to connect; returns without waiting for the end of it."""
        ...

    async def close(self) -> None:
        """Gives everything back."""
        ...

    def state(self) -> tuple[State.ValueType, str]:
        """Returns the state, and why it is so."""
        ...

    def tools(self) -> Sequence[tool_pb2.Tool]:
        """Returns the tools that come with it."""
        ...

    async def accept(self, tool: tool_pb2.Tool) -> None:
        """Returns when it will execute a tool as it is described and configured; it may complete the description.

        Raises:
            InvalidArgument: the configuration or the description is wrong; all violations.
        """
        ...

    def execute(self, call: Call) -> AsyncGenerator[Piece]:
        """Executes a call: `Sending` once, before anything is sent; output and progress; and `Answer` last.

        Raises:
            OutcomeLost: it was sent, and what became of it cannot be known.
            NeverSent: after `Sending` it turned out that it could not be sent.
            LimitPassed: it could not connect in time.
            TurnwireError: it failed.
        """
        ...

    async def has_ended(self, tenant: str, session_id: str) -> bool:
        """Returns whether an execution of a session that was just closed has surely ended, if that shows soon."""
        ...
