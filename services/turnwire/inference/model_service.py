"""The RPCs of `turnwire.inference.v1.ModelService`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.inference import validation
from turnwire.inference.v1 import model_service_pb2 as messages
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceServicer
from turnwire.runtime.identity import current
from turnwire.runtime.paging import decode_position, encode_position, page_size
from turnwire.runtime.validation import Violations

if TYPE_CHECKING:
    import grpc

    from turnwire.inference.registry import Models
    from turnwire.inference.v1 import model_pb2

    Context = grpc.aio.ServicerContext[Any, Any]


_BEFORE_ALL = (-1, "", "")
_AFTER_BUILT_IN = 2**31


class ModelServicer(ModelServiceServicer):
    """Serves the registry of models."""

    def __init__(self, models: Models) -> None:
        """Works on `models`."""
        self._models = models

    async def ListModels(self, request: messages.ListModelsRequest, context: Context) -> messages.ListModelsResponse:
        """Lists the models that can be used."""
        limit = page_size(request.page_size)
        last = decode_position(request.page_token, _BEFORE_ALL)
        rest = [
            (position, model)
            for number, model in enumerate(await self._models.all(current().tenant))
            if (position := _position(number, model)) > last
            and request.provider_id in {"", model.provider_id}
            and request.type in {0, model.type}
        ]
        page = rest[:limit]
        token = encode_position(*page[-1][0]) if len(rest) > limit else ""
        return messages.ListModelsResponse(models=[model for _, model in page], next_page_token=token)

    async def GetModel(self, request: messages.GetModelRequest, context: Context) -> messages.GetModelResponse:
        """Gets one model."""
        _require(request.model_id)
        _, model = await self._models.resolve(current().tenant, request.model_id)
        return messages.GetModelResponse(model=model)

    async def RegisterModel(
        self, request: messages.RegisterModelRequest, context: Context
    ) -> messages.RegisterModelResponse:
        """Gives a model an id of its own."""
        validation.check_register(request)
        return messages.RegisterModelResponse(model=await self._models.register(current().tenant, request))

    async def UnregisterModel(
        self, request: messages.UnregisterModelRequest, context: Context
    ) -> messages.UnregisterModelResponse:
        """Takes a registration back."""
        _require(request.model_id)
        await self._models.unregister(current().tenant, request.model_id)
        return messages.UnregisterModelResponse()


def _position(number: int, model: model_pb2.Model) -> tuple[int, str, str]:
    """What providers bring stands in the order of the configuration; registrations come after it, by their names.

    So a page begins after the name that ended the last one, whatever was taken back meanwhile.
    """
    return (number, "", "") if model.built_in else (_AFTER_BUILT_IN, model.model_id, model.provider_id)


def _require(name: str) -> None:
    violations = Violations()
    validation.check_model(violations, "model_id", name)
    violations.raise_if_any()
