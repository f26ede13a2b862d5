"""The wiring of the memory service."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from turnwire.common.v1 import inspect_service_pb2
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub
from turnwire.memory.bank_service import MemoryBankServicer
from turnwire.memory.banks import PROVIDERS
from turnwire.memory.contents import Contents
from turnwire.memory.documents import DocumentReader
from turnwire.memory.embedding import Embeddings
from turnwire.memory.insertion import Insertion
from turnwire.memory.preparation import Preparation
from turnwire.memory.project_docs import ProjectDocs, folder_of
from turnwire.memory.registry import Banks
from turnwire.memory.retrieval import Retrieval
from turnwire.memory.service import MemoryServicer
from turnwire.memory.store.schema import SCHEMA
from turnwire.memory.sweep import Sweep
from turnwire.memory.tokens import Tokens
from turnwire.memory.v1.memory_bank_service_pb2_grpc import add_MemoryBankServiceServicer_to_server
from turnwire.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server
from turnwire.runtime.fetch import GuardedFetcher
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine
    from typing import Any

    import grpc

    from turnwire.memory.banks.port import Provider
    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory


@asynccontextmanager
async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
    """Adds the memory service to a server, and closes on exit what it opened."""
    settings = context.settings.memory
    built: list[tuple[str, Provider]] = [
        (entry.provider_type, PROVIDERS.build(entry)) for entry in context.settings.providers.memory
    ]
    async with AsyncExitStack() as stack:
        store = await context.open_store(SCHEMA)
        stack.push_async_callback(store.close)
        for _, provider in built:
            stack.push_async_callback(provider.close)
        await asyncio.gather(*(provider.start(context.data_dir) for _, provider in built))
        reader = DocumentReader()
        stack.push_async_callback(reader.close)

        inference = directory.channel("inference")
        embeddings = Embeddings(InferenceServiceStub(inference), ModelServiceStub(inference))
        artifacts = ArtifactServiceStub(directory.channel("tool_executor"))
        contents = Contents(artifacts, GuardedFetcher(allow_hosts=context.settings.fetch.allow_hosts))
        banks = Banks(store, [provider for _, provider in built], embeddings)
        tokens = Tokens()
        insertion = Insertion(store, banks, embeddings, Preparation(contents, reader, tokens))
        retrieval = Retrieval(store, banks, embeddings, tokens)
        add_MemoryServiceServicer_to_server(MemoryServicer(store, banks, insertion, retrieval), server)
        add_MemoryBankServiceServicer_to_server(MemoryBankServicer(banks), server)

        async def described() -> list[inspect_service_pb2.Provider]:
            return [_described(provider, kind) for kind, provider in built]

        context.add_providers(described)
        await _begin(stack, Sweep(store, banks).run(), "memory sweep")
        folder = await asyncio.to_thread(folder_of, settings.docs_dir)
        if folder is not None:
            docs = ProjectDocs(folder, store, banks, embeddings, insertion)
            if await docs.prepare():
                await _begin(stack, docs.run(), "project docs")
        yield


async def _begin(stack: AsyncExitStack, work: Coroutine[Any, Any, None], name: str) -> None:
    """Runs something in the background until the stack is left."""
    task = asyncio.create_task(work, name=name)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


def _described(provider: Provider, provider_type: str) -> inspect_service_pb2.Provider:
    state, detail = provider.state()
    return inspect_service_pb2.Provider(
        provider_id=provider.provider_id,
        provider_type=provider_type,
        service="memory",
        state=state,
        detail=detail,
        serves=sorted(provider.kinds),
    )
