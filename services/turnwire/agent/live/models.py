"""Which provider serves a model, asked of the inference service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from turnwire.errors import InvalidArgument, from_rpc_error
from turnwire.inference.v1 import model_pb2, model_service_pb2

if TYPE_CHECKING:
    from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub

_TIMEOUT_SECONDS = 5.0


class Models:
    """Resolves the names of models."""

    def __init__(self, stub: ModelServiceStub) -> None:
        """Asks through `stub`."""
        self._stub = stub

    async def chat_model(self, name: str, field: str = "config.model") -> model_pb2.Model:
        """Returns the chat model of a name.

        Raises:
            NotFound: no provider serves it; the error names what there is.
            InvalidArgument: it is no chat model.
            Unavailable: the inference service cannot be reached.
        """
        model = await self._get(name)
        if model.type == model_pb2.MODEL_TYPE_EMBEDDING:
            raise InvalidArgument.one(field, f"{name} makes vectors; an agent needs a chat model")
        return model

    async def default(self) -> str:
        """Returns the first chat model that is served; empty when there is none."""
        try:
            response = await self._stub.ListModels(
                model_service_pb2.ListModelsRequest(type=model_pb2.MODEL_TYPE_CHAT, page_size=200),
                timeout=_TIMEOUT_SECONDS,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        models = [model for model in response.models if model.type != model_pb2.MODEL_TYPE_EMBEDDING]
        if not models:
            return ""
        return f"{models[0].provider_id}/{models[0].model_id}"

    async def _get(self, name: str) -> model_pb2.Model:
        # Asked for every turn: a turn is only accepted while its model can be reached.
        request = model_service_pb2.GetModelRequest(model_id=name)
        try:
            return (await self._stub.GetModel(request, timeout=_TIMEOUT_SECONDS)).model
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error


def address(model: model_pb2.Model) -> str:
    """Returns the name under which a model is addressed beyond doubt: `provider_id/model_id`."""
    return f"{model.provider_id}/{model.model_id}"
