"""What the tests of the safety service call it with."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.common.v1 import message_pb2, shield_pb2
from turnwire.safety.shields.port import Content
from turnwire.safety.text.patterns import Stop
from turnwire.safety.v1 import safety_service_pb2, shield_service_pb2_grpc
from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceStub
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from turnwire.safety.shields.inline import Finding, Screen
    from turnwire.testing.mesh import RunningMesh

USER = message_pb2.ROLE_USER
AGENT = message_pb2.ROLE_ASSISTANT
INFO = shield_pb2.VIOLATION_LEVEL_INFO
WARN = shield_pb2.VIOLATION_LEVEL_WARN
ERROR = shield_pb2.VIOLATION_LEVEL_ERROR
CLEAN = shield_pb2.VIOLATION_LEVEL_UNSPECIFIED

PROVIDERS: list[dict[str, Any]] = [
    {"provider_id": name, "provider_type": f"inline::{name}"}
    for name in ("secrets", "pii", "prompt-injection", "rules")
]


def said(text: str, role: message_pb2.Role.ValueType = USER, **part: Any) -> message_pb2.Message:
    """Returns a message of one text."""
    return message_pb2.Message(role=role, parts=[message_pb2.ContentPart(text=text, **part)])


def content(text: str, **part: Any) -> Content:
    """Returns a content of one text."""
    return Content([said(text, **part)], shield_pb2.SHIELD_POINT_INPUT)


def found(screen: Screen, text: str, **part: Any) -> list[tuple[str, str]]:
    """Returns (category, text) of what a shield finds, in the order of the text."""
    return [(each.category, _at(text, each)) for each in sorted(_findings(screen, text, **part), key=lambda f: f.start)]


def _findings(screen: Screen, text: str, **part: Any) -> Sequence[Finding]:
    return screen.findings(content(text, **part), Stop(60))


def _at(text: str, finding: Finding) -> str:
    return text.encode()[finding.start : finding.end].decode()


class Safety:
    """The safety service of a mesh, called as a caller does."""

    def __init__(self, channel: grpc.aio.Channel, key: str = "") -> None:
        """Calls with a key, if one is given."""
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.screening: Any = SafetyServiceStub(channel)
        self.registry: Any = shield_service_pb2_grpc.ShieldServiceStub(channel)

    async def run(
        self, shield_ids: Sequence[str], *messages: message_pb2.Message, timeout: float = 30
    ) -> safety_service_pb2.RunShieldsResponse:
        """Runs shields on messages."""
        request = safety_service_pb2.RunShieldsRequest(
            shield_ids=shield_ids, point=shield_pb2.SHIELD_POINT_INPUT, messages=messages
        )
        return await self.screening.RunShields(request, metadata=self._metadata, timeout=timeout)

    async def call(self, name: str, request: Any) -> Any:
        """Calls a method of the registry."""
        return await getattr(self.registry, name)(request, metadata=self._metadata, timeout=30)


@asynccontextmanager
async def safety_of(mesh: RunningMesh, key: str = "") -> AsyncGenerator[Safety]:
    """Gives the safety service of a mesh."""
    async with grpc.aio.insecure_channel(mesh.address("safety")) as channel:
        yield Safety(channel, key)


@asynccontextmanager
async def running_safety(
    providers: Sequence[dict[str, Any]] = PROVIDERS, *, key: str = "", **arguments: Any
) -> AsyncGenerator[Safety]:
    """Gives the safety service of a mesh that holds nothing else."""
    async with running_mesh(services=("safety",), providers={"safety": list(providers)}, **arguments) as mesh:
        async with safety_of(mesh, key) as safety:
            yield safety
