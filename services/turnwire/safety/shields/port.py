"""What the safety service asks of a provider of shields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from turnwire.common.v1 import inspect_service_pb2, message_pb2, shield_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnwire.runtime.directory import Directory
    from turnwire.safety.v1 import shield_pb2 as registry_pb2

State = inspect_service_pb2.Provider.State
Level = shield_pb2.ViolationLevel


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text of the messages, and where it stands."""

    message_index: int
    part_index: int
    text: str
    provenance: message_pb2.Provenance.ValueType


@dataclass(frozen=True, slots=True)
class Content:
    """What is judged."""

    messages: Sequence[message_pb2.Message]
    point: shield_pb2.ShieldPoint.ValueType

    def texts(self) -> Iterator[TextPart]:
        """Returns all texts, in order, each with where it comes from."""
        for index, message in enumerate(self.messages):
            for number, part in enumerate(message.parts):
                if part.WhichOneof("content") == "text" and part.text:
                    yield TextPart(index, number, part.text, _provenance(message, part))

    def unread(self) -> int:
        """Returns how many parts are no text: no shield of this version reads them."""
        return sum(1 for message in self.messages for part in message.parts if part.WhichOneof("content") == "image")


@dataclass(slots=True)
class Judgement:
    """What a shield found."""

    level: Level.ValueType = shield_pb2.VIOLATION_LEVEL_UNSPECIFIED
    user_message: str = ""
    categories: list[str] = field(default_factory=list[str])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    redactions: list[shield_pb2.Redaction] = field(default_factory=list[shield_pb2.Redaction])
    """In the order of the content, apart from each other, on the borders of code points."""


class Provider(Protocol):
    """Runs shields. A provider is one module with one class and one pydantic `Config`; failures are typed errors."""

    provider_id: str
    timeout_seconds: float
    """How long one judgement may take."""

    async def start(self, directory: Directory) -> None:
        """Begins to load or connect; returns without waiting for the end of it."""
        ...

    async def close(self) -> None:
        """Gives everything back."""
        ...

    def state(self) -> tuple[State.ValueType, str]:
        """Returns the state, and why it is so."""
        ...

    def shields(self) -> Sequence[registry_pb2.Shield]:
        """Returns the shields that come with it."""
        ...

    async def accept(self, shield: registry_pb2.Shield) -> None:
        """Returns when it will run the shield as it is configured.

        Raises:
            InvalidArgument: the configuration is wrong; all violations.
            NotServed: it has nothing of the name `provider_shield_id`.
            TurnwireError: it cannot tell now.
        """
        ...

    async def judge(self, shield: registry_pb2.Shield, content: Content, seconds: float) -> Judgement:
        """Judges a content within so many seconds.

        Raises:
            TurnwireError: it could not judge. That is never taken for a content without a finding.
        """
        ...


def built_in(provider_id: str, name: str, config_json: str) -> registry_pb2.Shield:
    """Returns a shield that comes with a provider, under the provider's own name."""
    from turnwire.safety.v1 import shield_pb2 as registry  # two files of the contract have this name

    return registry.Shield(
        shield_id=name, provider_id=provider_id, provider_shield_id=name, config_json=config_json, built_in=True
    )


def _provenance(message: message_pb2.Message, part: message_pb2.ContentPart) -> message_pb2.Provenance.ValueType:
    """An unknown one is taken as the least trusted that fits the role, as the contract says."""
    if part.provenance != message_pb2.PROVENANCE_UNSPECIFIED:
        return part.provenance
    match message.role:
        case message_pb2.ROLE_SYSTEM:
            return message_pb2.PROVENANCE_SYSTEM
        case message_pb2.ROLE_ASSISTANT:
            return message_pb2.PROVENANCE_MODEL
        case message_pb2.ROLE_TOOL:
            return message_pb2.PROVENANCE_TOOL_RESULT
        case _:
            return message_pb2.PROVENANCE_USER
