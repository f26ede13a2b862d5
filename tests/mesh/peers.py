"""The services beside agent and inference, scripted: real servers that answer as a test tells them to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2, retrieval_pb2, shield_pb2
from turnwire.errors import NotFound
from turnwire.memory.v1 import bank_pb2, document_pb2, memory_bank_service_pb2, memory_service_pb2
from turnwire.memory.v1.memory_bank_service_pb2_grpc import (
    MemoryBankServiceServicer,
    add_MemoryBankServiceServicer_to_server,
)
from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceServicer, add_MemoryServiceServicer_to_server
from turnwire.safety.v1 import safety_service_pb2, shield_service_pb2
from turnwire.safety.v1 import shield_pb2 as registered_shield_pb2
from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceServicer, add_SafetyServiceServicer_to_server
from turnwire.safety.v1.shield_service_pb2_grpc import ShieldServiceServicer, add_ShieldServiceServicer_to_server
from turnwire.tool_executor.v1 import (
    execution_pb2,
    tool_executor_service_pb2,
    tool_pb2,
    tool_service_pb2,
)
from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import (
    ToolExecutorServiceServicer,
    add_ToolExecutorServiceServicer_to_server,
)
from turnwire.tool_executor.v1.tool_service_pb2_grpc import ToolServiceServicer, add_ToolServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

SCHEMA = '{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}'


@dataclass
class Peers:
    """What the peers do, and what they were asked."""

    address: str = ""
    shielded: list[safety_service_pb2.RunShieldsRequest] = field(default_factory=list[Any])
    queries: list[memory_service_pb2.QueryRequest] = field(default_factory=list[Any])
    inserted: list[document_pb2.Document] = field(default_factory=list[Any])
    executed: list[tool_executor_service_pb2.ExecuteToolRequest] = field(default_factory=list[Any])
    cancelled: list[str] = field(default_factory=list[str])
    chunks: list[retrieval_pb2.RetrievedChunk] = field(default_factory=list[Any])
    broken_shields: set[str] = field(default_factory=set[str])
    running: int = 0
    most_at_once: int = 0
    failing_waits_for: int = 1
    """`failing` fails once so many calls have been running at once."""
    delay: float = 0.0
    """So long every answer takes, in seconds."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """The tool `slow` answers when it is set."""

    @property
    def addresses(self) -> dict[str, str]:
        """Settings of a mesh that talks to the peers."""
        return dict.fromkeys(("safety", "memory", "tool_executor"), self.address)


class _Shields(ShieldServiceServicer, SafetyServiceServicer):
    """The shield `no-X` objects to the text X, `hide-X` replaces it, `warn-X` warns of it."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def GetShield(self, request: Any, context: Any) -> Any:
        if not request.shield_id.startswith(("no-", "hide-", "warn-")):
            await _not_found(context, "shield", request.shield_id)
        shield = registered_shield_pb2.Shield(shield_id=request.shield_id)
        return shield_service_pb2.GetShieldResponse(shield=shield)

    async def RunShields(self, request: Any, context: Any) -> Any:
        self._peers.shielded.append(request)
        await asyncio.sleep(self._peers.delay)
        response = safety_service_pb2.RunShieldsResponse()
        messages = [message_pb2.Message.FromString(message.SerializeToString()) for message in request.messages]
        for shield_id in request.shield_ids:
            verdict = response.verdicts.add(shield_id=shield_id, provider_id="peer")
            if shield_id in self._peers.broken_shields:
                verdict.failure.reason = error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE
                continue
            kind, _, word = shield_id.partition("-")
            parts = [part for message in messages for part in message.parts if word in part.text]
            if not parts:
                continue
            if kind == "no":
                verdict.level = shield_pb2.VIOLATION_LEVEL_ERROR
                verdict.user_message = f"I do not talk of {word}."
            elif kind == "warn":
                verdict.level = shield_pb2.VIOLATION_LEVEL_WARN
            else:
                verdict.level = shield_pb2.VIOLATION_LEVEL_INFO
                for part in parts:
                    part.text = part.text.replace(word, "[hidden]")
        if [message.SerializeToString() for message in messages] != [
            message.SerializeToString() for message in request.messages
        ]:
            response.redacted.extend(messages)
        return response


class _Memory(MemoryBankServiceServicer, MemoryServiceServicer):
    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._banks = {"library", "archive"}

    async def GetMemoryBank(self, request: Any, context: Any) -> Any:
        if request.bank_id not in self._banks:
            await _not_found(context, "memory bank", request.bank_id)
        return memory_bank_service_pb2.GetMemoryBankResponse(bank=bank_pb2.MemoryBank(bank_id=request.bank_id))

    async def RegisterMemoryBank(self, request: Any, context: Any) -> Any:
        self._banks.add(request.bank.bank_id)
        return memory_bank_service_pb2.RegisterMemoryBankResponse(bank=request.bank)

    async def UnregisterMemoryBank(self, request: Any, context: Any) -> Any:
        self._banks.discard(request.bank_id)
        return memory_bank_service_pb2.UnregisterMemoryBankResponse()

    async def InsertDocuments(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for document in request.documents:
            self._peers.inserted.append(document)
            progress = document_pb2.DocumentProgress(
                document_id=document.document_id, state=document_pb2.DOCUMENT_STATE_INSERTED
            )
            if document.title == "bad.pdf":
                progress.state = document_pb2.DOCUMENT_STATE_FAILED
                progress.failure.reason = error_pb2.ERROR_REASON_DOCUMENT_REFUSED
            yield memory_service_pb2.InsertDocumentsResponse(progress=progress)

    async def Query(self, request: Any, context: Any) -> Any:
        self._peers.queries.append(request)
        await asyncio.sleep(self._peers.delay)
        chunks = [chunk for chunk in self._peers.chunks if chunk.bank_id in request.bank_ids]
        return memory_service_pb2.QueryResponse(chunks=chunks[: request.max_chunks])


class _Tools(ToolServiceServicer, ToolExecutorServiceServicer):
    """Tools: `echo` repeats its text, `slow` waits for the gate, `failing` fails, `drawing` makes a file.

    `counting` tells how much is done, and the outcome of `losing` is lost, unless the call repeats another.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def GetTool(self, request: Any, context: Any) -> Any:
        if request.tool_id not in {
            "echo",
            "slow",
            "failing",
            "drawing",
            "counting",
            "losing",
            "code_interpreter",
            "web_search",
        }:
            await _not_found(context, "tool", request.tool_id)
        definition = generation_pb2.ToolDefinition(name=request.tool_id, parameters_json_schema=SCHEMA)
        return tool_service_pb2.GetToolResponse(tool=tool_pb2.Tool(tool_id=request.tool_id, definition=definition))

    async def ExecuteTool(self, request: Any, context: Any) -> AsyncIterator[Any]:
        peers = self._peers
        peers.executed.append(request)
        peers.running += 1
        peers.most_at_once = max(peers.most_at_once, peers.running)
        result = message_pb2.ToolResult(call_id=request.call.call_id, name=request.call.name)
        try:
            await asyncio.sleep(peers.delay)
            output = tool_executor_service_pb2.ExecutionOutput(text=f"{request.call.name} begins\n")
            yield tool_executor_service_pb2.ExecuteToolResponse(output=output)
            match request.call.name:
                case "slow":
                    await peers.gate.wait()
                    result.content = "at last"
                case "losing" if not request.call.retry_of:
                    result.failure.reason = error_pb2.ERROR_REASON_OUTCOME_UNKNOWN
                    result.failure.message = "It was lost."
                case "counting":
                    for done in range(1, 1001):
                        progress = tool_executor_service_pb2.ExecutionProgress(done=done, total=1000, unit="rows")
                        yield tool_executor_service_pb2.ExecuteToolResponse(progress=progress)
                    result.content = "counted"
                case "failing":
                    while peers.most_at_once < peers.failing_waits_for:
                        await asyncio.sleep(0.005)
                    result.failure.reason = error_pb2.ERROR_REASON_TOOL_FAILED
                    result.failure.message = "It broke."
                case "drawing":
                    result.content = "drawn"
                    result.attachments.add(artifact_id="art_1", name="figure.png", mime_type="image/png")
                case _:
                    result.content = request.call.arguments_json
            yield tool_executor_service_pb2.ExecuteToolResponse(result=result)
        finally:
            peers.running -= 1

    async def CancelExecution(self, request: Any, context: Any) -> Any:
        self._peers.cancelled.append(request.call_id)
        execution = execution_pb2.Execution(call_id=request.call_id, state=execution_pb2.EXECUTION_STATE_CANCELLED)
        return tool_executor_service_pb2.CancelExecutionResponse(execution=execution)


async def _not_found(context: Any, kind: str, name: str) -> None:
    from grpc_status import rpc_status

    await context.abort_with_status(rpc_status.to_status(NotFound(kind, name).to_status()))


@asynccontextmanager
async def running_peers() -> AsyncGenerator[Peers]:
    """Gives the peers, served on one port."""
    peers = Peers()
    server = grpc.aio.server()
    shields, memory, tools = _Shields(peers), _Memory(peers), _Tools(peers)  # pyright: ignore[reportAbstractUsage] - they serve what is asked of them here
    add_ShieldServiceServicer_to_server(shields, server)
    add_SafetyServiceServicer_to_server(shields, server)
    add_MemoryBankServiceServicer_to_server(memory, server)
    add_MemoryServiceServicer_to_server(memory, server)
    add_ToolServiceServicer_to_server(tools, server)
    add_ToolExecutorServiceServicer_to_server(tools, server)
    peers.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield peers
    finally:
        await server.stop(None)
