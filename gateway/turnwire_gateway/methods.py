"""Every public method of the contract, read from its descriptors: no method is written down here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message_factory import GetMessageClass

from turnwire.access.v1 import access_service_pb2
from turnwire.agent.v1 import agent_service_pb2
from turnwire.common.v1 import inspect_service_pb2
from turnwire.inference.v1 import inference_service_pb2, model_service_pb2
from turnwire.memory.v1 import memory_bank_service_pb2, memory_service_pb2
from turnwire.safety.v1 import safety_service_pb2, shield_service_pb2
from turnwire.tool_executor.v1 import artifact_service_pb2, tool_executor_service_pb2, tool_service_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

# The sandbox runner talks to the tool executor only.
_FILES: tuple[Any, ...] = (
    access_service_pb2,
    agent_service_pb2,
    inspect_service_pb2,
    inference_service_pb2,
    model_service_pb2,
    safety_service_pb2,
    shield_service_pb2,
    memory_service_pb2,
    memory_bank_service_pb2,
    artifact_service_pb2,
    tool_executor_service_pb2,
    tool_service_pb2,
)
_HOSTS = {"access": "agent", "common": "agent"}
"""Packages that are no service of their own, and who answers for them here."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method: who serves it, and what goes in and out."""

    name: str
    """As `turnwire.agent.v1.AgentService/GetTurn`."""
    service: str
    """The service of the mesh that serves it, as `agent`."""
    request: type[Message]
    response: type[Message]
    streams_in: bool
    streams_out: bool


def _found() -> dict[str, Method]:
    methods: dict[str, Method] = {}
    for file in _FILES:
        package = file.DESCRIPTOR.package.split(".")[1]
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                name = f"{service.full_name}/{method.name}"
                methods[name] = Method(
                    name=name,
                    service=_HOSTS.get(package) or package,
                    request=GetMessageClass(method.input_type),
                    response=GetMessageClass(method.output_type),
                    streams_in=method.client_streaming,
                    streams_out=method.server_streaming,
                )
    return methods


METHODS = _found()
"""Full name to method."""
