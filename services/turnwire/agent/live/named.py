"""What a configuration names, asked of the services that have it: models, tools, shields, banks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from turnwire.agent.turn.config import definition_of
from turnwire.agent.v1 import agent_pb2
from turnwire.errors import InvalidArgument, NotFound, from_rpc_error
from turnwire.inference.v1 import model_pb2, model_service_pb2
from turnwire.memory.v1 import memory_bank_service_pb2
from turnwire.safety.v1 import shield_service_pb2
from turnwire.tool_executor.v1 import tool_service_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub
    from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceStub
    from turnwire.safety.v1.shield_service_pb2_grpc import ShieldServiceStub
    from turnwire.tool_executor.v1.tool_service_pb2_grpc import ToolServiceStub

_TIMEOUT_SECONDS = 5.0


class Named:
    """Resolves names. All of a configuration are asked for at once."""

    def __init__(
        self,
        *,
        models: ModelServiceStub,
        shields: ShieldServiceStub,
        banks: MemoryBankServiceStub,
        tools: ToolServiceStub,
    ) -> None:
        """Asks through these stubs."""
        self.models = models
        self.shields = shields
        self.banks = banks
        self.tools = tools

    async def check(self, config: agent_pb2.AgentConfig, field: str = "config") -> None:
        """Requires that all there is in a configuration exists.

        Raises:
            NotFound: something does not; the error names what there is.
            InvalidArgument: the model is no chat model, or two tools have one name.
            Unavailable: a service that is needed for it cannot be reached.
        """
        shields = {*config.input_shields, *config.output_shields}
        for tool in config.tools:
            shields |= {*tool.input_shields, *tool.output_shields}
        await _all(
            self.pinned(config, field),
            *(self._shield(shield_id) for shield_id in sorted(shields)),
            *(self._bank(bank_id) for bank_id in sorted(_bank_ids(config))),
        )

    async def pinned(self, config: agent_pb2.AgentConfig, field: str = "config") -> agent_pb2.AgentConfig:
        """Returns a configuration as a turn runs under it: with its provider, and what its tools are now.

        Raises:
            NotFound, InvalidArgument, Unavailable: as `check`, for the model and the tools.
        """
        result = agent_pb2.AgentConfig()
        result.CopyFrom(config)
        registered = [tool.registered for tool in result.tools if tool.WhichOneof("tool") == "registered"]
        model, *_ = await _all(
            self.chat_model(config.model, f"{field}.model"), *(self._pin(each) for each in registered)
        )
        result.model = f"{model.provider_id}/{model.model_id}"
        _check_names(result, field)
        return result

    async def chat_model(self, name: str, field: str = "config.model") -> model_pb2.Model:
        """Returns the chat model of a name.

        Raises:
            NotFound: no provider serves it; the error names what there is.
            InvalidArgument: it is no chat model.
            Unavailable: the inference service cannot be reached.
        """
        # Asked for every turn: a turn is only accepted while its model can be reached.
        request = model_service_pb2.GetModelRequest(model_id=name)
        model = (await _asked(self.models.GetModel(request, timeout=_TIMEOUT_SECONDS), "inference")).model
        if model.type == model_pb2.MODEL_TYPE_EMBEDDING:
            raise InvalidArgument.one(field, f"{name} makes vectors; an agent needs a chat model")
        return model

    async def default_model(self) -> str:
        """Returns the first chat model that is served; empty when there is none."""
        request = model_service_pb2.ListModelsRequest(type=model_pb2.MODEL_TYPE_CHAT, page_size=200)
        response = await _asked(self.models.ListModels(request, timeout=_TIMEOUT_SECONDS), "inference")
        models = [model for model in response.models if model.type != model_pb2.MODEL_TYPE_EMBEDDING]
        return f"{models[0].provider_id}/{models[0].model_id}" if models else ""

    async def remove_bank(self, bank_id: str) -> None:
        """Removes a bank, if it is there.

        Raises:
            Unavailable: the memory service cannot be reached.
        """
        request = memory_bank_service_pb2.UnregisterMemoryBankRequest(bank_id=bank_id)
        try:
            await _asked(self.banks.UnregisterMemoryBank(request, timeout=_TIMEOUT_SECONDS), "memory")
        except NotFound:
            return

    async def _pin(self, tool: agent_pb2.RegisteredTool) -> None:
        request = tool_service_pb2.GetToolRequest(tool_id=tool.tool_id)
        response = await _asked(self.tools.GetTool(request, timeout=_TIMEOUT_SECONDS), "tool_executor")
        tool.definition.CopyFrom(response.tool.definition)
        tool.idempotent = response.tool.idempotent

    async def _shield(self, shield_id: str) -> None:
        request = shield_service_pb2.GetShieldRequest(shield_id=shield_id)
        await _asked(self.shields.GetShield(request, timeout=_TIMEOUT_SECONDS), "safety")

    async def _bank(self, bank_id: str) -> None:
        request = memory_bank_service_pb2.GetMemoryBankRequest(bank_id=bank_id)
        await _asked(self.banks.GetMemoryBank(request, timeout=_TIMEOUT_SECONDS), "memory")


def _bank_ids(config: agent_pb2.AgentConfig) -> set[str]:
    banks = set(config.retrieval.bank_ids)
    for tool in config.tools:
        banks |= set(tool.memory_search.bank_ids)
    return banks


def _check_names(config: agent_pb2.AgentConfig, field: str) -> None:
    names: set[str] = set()
    for index, tool in enumerate(config.tools):
        name = definition_of(tool).name
        if name in names:
            raise InvalidArgument.one(f"{field}.tools[{index}]", f"{name!r} is the name of two tools")
        names.add(name)


async def _asked(call: Any, service: str) -> Any:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error, service=service) from error


async def _all(*awaited: Awaitable[Any]) -> list[Any]:
    """Waits for all, then raises the first error: none is left running."""
    results: Iterable[Any] = await asyncio.gather(*awaited, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
