"""Every RPC of the contract, called with bytes of any kind."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool, message_factory

from turnwire.errors import TurnwireError, from_status
from turnwire.errors.wire import status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message

HOSTS = {
    "agent": ("agent.v1.agent_service", "agent.v1.turn_owner_service", "access.v1.access_service"),
    "inference": ("inference.v1.inference_service", "inference.v1.model_service"),
    "safety": ("safety.v1.safety_service", "safety.v1.shield_service"),
    "memory": ("memory.v1.memory_service", "memory.v1.memory_bank_service"),
    "tool_executor": (
        "tool_executor.v1.tool_executor_service",
        "tool_executor.v1.tool_service",
        "tool_executor.v1.artifact_service",
    ),
    "sandbox_runner": ("sandbox_runner.v1.sandbox_runner_service",),
}
"""The files of the services that each process hosts; InspectService besides, on every one."""


@dataclass(frozen=True)
class Rpc:
    """One RPC."""

    host: str
    service: str
    name: str
    request: Any
    response: Any
    client_streaming: bool
    server_streaming: bool

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    def __str__(self) -> str:
        return f"{self.service.rpartition('.')[2]}.{self.name}"


def all_rpcs() -> list[Rpc]:
    """Returns every RPC, from the descriptors."""
    pool: Any = descriptor_pool.Default()
    result: list[Rpc] = []
    for host, files in HOSTS.items():
        for file in (*files, "common.v1.inspect_service"):
            import_module(f"turnwire.{file}_pb2")
            descriptor = pool.FindFileByName(f"turnwire/{file.replace('.', '/')}.proto")
            for service in descriptor.services_by_name.values():
                for method in service.methods:
                    result.append(
                        Rpc(
                            host,
                            service.full_name,
                            method.name,
                            message_factory.GetMessageClass(method.input_type),
                            message_factory.GetMessageClass(method.output_type),
                            method.client_streaming,
                            method.server_streaming,
                        )
                    )
    return result


async def call(address: str, rpc: Rpc, body: bytes, key: str = "") -> tuple[grpc.StatusCode, TurnwireError | None]:
    """Calls an RPC with the bytes of a request; returns the code and the typed error."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    ) as channel:
        kind = f"{'stream' if rpc.client_streaming else 'unary'}_{'stream' if rpc.server_streaming else 'unary'}"
        method: Any = getattr(channel, kind)(rpc.path, request_serializer=bytes, response_deserializer=bytes)
        request: Any = _one(body) if rpc.client_streaming else body
        made = method(request, metadata=metadata, timeout=10)
        try:
            if rpc.server_streaming:
                async for _ in made:
                    pass
            else:
                await made
        except grpc.aio.AioRpcError as error:
            status = status_of(error.trailing_metadata())
            return error.code(), from_status(status) if status is not None else None
        finally:
            made.cancel()
    return grpc.StatusCode.OK, None


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


def filled(message: Message, text: str, *, depth: int = 0) -> Message:
    """Sets every string of a message to a text, nested ones too; one element in lists."""
    descriptor: Any = message.DESCRIPTOR
    for field in descriptor.fields:
        _fill(message, field, text, depth)
    return message


def _fill(message: Message, field: FieldDescriptor, text: str, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return
    if field.type == field.TYPE_STRING:
        if field.is_repeated:
            getattr(message, field.name).append(text)
        else:
            setattr(message, field.name, text)
    elif field.type == field.TYPE_MESSAGE and depth < 3:
        inner = getattr(message, field.name)
        filled(inner.add() if field.is_repeated else inner, text, depth=depth + 1)


def dump(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Returns every row of every database below a folder."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for file in sorted(folder.rglob("*.sqlite3")):
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                rows[f"{file.name}/{table}"] = connection.execute(f"SELECT * FROM {table}").fetchall()
        connection.close()
    return rows
