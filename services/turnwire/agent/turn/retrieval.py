"""A MEMORY_RETRIEVAL step: attachments are put into the session's bank, then the banks are searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from turnwire.agent.log.writer import draft
from turnwire.agent.turn.retrying import failed_or_restarted
from turnwire.agent.v1 import agent_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2
from turnwire.errors import AlreadyExists, TurnwireError, from_rpc_error
from turnwire.inference.v1 import inference_service_pb2
from turnwire.memory.v1 import bank_pb2, document_pb2, memory_bank_service_pb2, memory_service_pb2
from turnwire.runtime.channels import upstream
from turnwire.runtime.failpoints import Boundary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.turn.config import TurnConfig
    from turnwire.common.v1 import retrieval_pb2
    from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
    from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceStub
    from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceStub

_SECONDS = 60.0
_INSERT_SECONDS = 600.0
_DEFAULT_TOKENS = 4096
_DEFAULT_CHUNKS = 10
_BANK = Boundary("agent.session_bank")
_KEEPING = Boundary("agent.attachments_kept")
_QUERY = Boundary("agent.query_written")
_SEARCH = Boundary("agent.search")


class RetrievalStep:
    """Looks things up for one turn."""

    def __init__(
        self,
        memory: MemoryServiceStub,
        banks: MemoryBankServiceStub,
        inference: InferenceServiceStub,
        config: TurnConfig,
    ) -> None:
        """Asks a model for the query where the agent wants that."""
        self._memory = memory
        self._banks = banks
        self._inference = inference
        self._config = config

    async def run(
        self, turn: turn_pb2.Turn, step: step_pb2.Step, history: Sequence[message_pb2.Message]
    ) -> list[event_pb2.StepEvent]:
        """Runs one attempt and returns the event that ends it: completed, restarted or failed."""
        result = event_pb2.MemoryRetrievalResult()
        try:
            await self._keep_attachments(turn, result)
            result.query = await self._query(turn, history, result)
            if result.query.strip():
                result.chunks.extend(await self.search(list(step.memory_retrieval.bank_ids), result.query))
        except TurnwireError as error:
            return [failed_or_restarted(turn, step, error)]
        except grpc.RpcError as error:
            return [failed_or_restarted(turn, step, from_rpc_error(error, service="memory"))]
        completed = event_pb2.StepCompleted(memory_retrieval=result)
        return [draft(turn.turn_id, "step_completed", completed, step.step_id)]

    async def search(
        self, bank_ids: Sequence[str], query: str, max_chunks: int = 0, *, seconds: float = _SECONDS
    ) -> Sequence[retrieval_pb2.RetrievedChunk]:
        """Returns the chunks that fit a query best, within the agent's budget, in at most so many seconds."""
        limits = self._config.config.retrieval
        part = message_pb2.ContentPart(text=query, provenance=message_pb2.PROVENANCE_USER)
        request = memory_service_pb2.QueryRequest(
            bank_ids=bank_ids,
            messages=[message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])],
            max_chunks=max_chunks or limits.max_chunks or _DEFAULT_CHUNKS,
            max_tokens_in_context=limits.max_tokens_in_context or _DEFAULT_TOKENS,
            min_score=limits.min_score,
        )
        async with _SEARCH:
            return (await self._memory.Query(request, timeout=min(seconds, _SECONDS))).chunks

    async def _keep_attachments(self, turn: turn_pb2.Turn, result: event_pb2.MemoryRetrievalResult) -> None:
        documents = attached_documents(turn)
        if not documents or not turn.session_bank_id or self._config.files_go_to_interpreter:
            return
        bank = bank_pb2.MemoryBank(
            bank_id=turn.session_bank_id,
            name=f"Attachments of {turn.session_id}",
            vector=bank_pb2.VectorBankConfig(),
        )
        request = memory_bank_service_pb2.RegisterMemoryBankRequest(bank=bank, request_id=turn.session_bank_id)
        try:
            async with _BANK:
                await self._banks.RegisterMemoryBank(request, timeout=_SECONDS)
        except grpc.RpcError as error:
            typed = from_rpc_error(error, service="memory")
            if not isinstance(typed, AlreadyExists):
                raise typed from error
        insert = memory_service_pb2.InsertDocumentsRequest(bank_id=turn.session_bank_id, documents=documents)
        call = self._memory.InsertDocuments(insert, timeout=_INSERT_SECONDS)
        async with upstream(call), _KEEPING:
            async for response in call:
                _note(response.progress, result)

    async def _query(
        self, turn: turn_pb2.Turn, history: Sequence[message_pb2.Message], result: event_pb2.MemoryRetrievalResult
    ) -> str:
        texts = [_text(message) for message in turn.input]
        retrieval = self._config.config.retrieval
        if retrieval.WhichOneof("query_generator") != "llm":
            return (retrieval.joined.separator or " ").join(text for text in texts if text)
        conversation = "\n".join(
            f"{message_pb2.Role.Name(message.role).removeprefix('ROLE_').lower()}: {_text(message)}"
            for message in [*history, *turn.input]
        )
        return await self._written_query(retrieval.llm, conversation, result)

    async def _written_query(
        self, generator: agent_pb2.LlmQueryGenerator, conversation: str, result: event_pb2.MemoryRetrievalResult
    ) -> str:
        part = message_pb2.ContentPart(
            text=generator.template.replace("{{messages}}", conversation), provenance=message_pb2.PROVENANCE_SYSTEM
        )
        request = inference_service_pb2.ChatCompletionRequest(
            model=generator.model or self._config.config.model,
            messages=[message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])],
            sampling_parameters=generation_pb2.SamplingParameters(
                greedy=generation_pb2.GreedySampling(), max_tokens=128
            ),
        )
        text = ""
        call = self._inference.ChatCompletion(request, timeout=_SECONDS)
        try:
            async with upstream(call), _QUERY:
                async for piece in call:
                    text += piece.text.text
                    if piece.HasField("completed"):
                        result.usage.CopyFrom(piece.completed.usage)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        return text.strip()


def attached_documents(turn: turn_pb2.Turn) -> list[document_pb2.Document]:
    """Returns the attachments of a turn's input as documents; their ids are the same at each attempt."""
    documents: list[document_pb2.Document] = []
    for index, message in enumerate(turn.input):
        for number, attachment in enumerate(message.attachments):
            name = attachment.name or f"attachment {len(documents) + 1}"
            document = document_pb2.Document(
                document_id=f"{turn.turn_id}-{index}-{number}", title=name, mime_type=attachment.mime_type
            )
            match attachment.WhichOneof("content"):
                case "text":
                    document.text = attachment.text
                case "data":
                    document.data = attachment.data
                case "artifact_id":
                    document.artifact_id = attachment.artifact_id
                case "url":
                    document.url = attachment.url
                    document.uri = attachment.url
                case None:
                    continue
            documents.append(document)
    return documents


def _note(progress: document_pb2.DocumentProgress, result: event_pb2.MemoryRetrievalResult) -> None:
    match progress.state:
        case document_pb2.DOCUMENT_STATE_INSERTED | document_pb2.DOCUMENT_STATE_UNCHANGED:
            result.inserted_document_ids.append(progress.document_id)
        case document_pb2.DOCUMENT_STATE_FAILED:
            failure = error_pb2.Failure()
            failure.CopyFrom(progress.failure)
            result.refused_documents[progress.document_id].CopyFrom(failure)
        case _:
            pass


def _text(message: message_pb2.Message) -> str:
    return "".join(part.text for part in message.parts)
