"""The models that can be used: what the providers serve, and the names that were registered for them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.errors import (
    AlreadyExists,
    Ambiguous,
    IdempotencyConflict,
    NotFound,
    NotServed,
    ResourceInUse,
    TurnwireError,
)
from turnwire.inference.store import models as stored
from turnwire.inference.v1 import model_pb2, model_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.inference.providers.port import Provider
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)


class Models:
    """Resolves the names of models; registrations belong to a tenant and outlive a restart."""

    def __init__(self, store: Store, providers: Sequence[Provider]) -> None:
        """Knows these providers, in the order of the configuration."""
        self._store = store
        self._providers = {provider.provider_id: provider for provider in providers}

    async def resolve(self, tenant: str, name: str) -> tuple[Provider, model_pb2.Model]:
        """Returns the model of a name, `model_id` or `provider_id/model_id`, and its provider.

        Raises:
            NotFound: there is none; the error names what there is.
            Ambiguous: several providers have one of that id.
        """
        models = await self.all(tenant)
        found = [model for model in models if name in {model.model_id, f"{model.provider_id}/{model.model_id}"}]
        # A full address is beyond doubt, also where another model's own id looks like it.
        exact = [model for model in found if name == f"{model.provider_id}/{model.model_id}"]
        chosen = exact or found
        if not chosen:
            raise NotFound("model", name, available=_names(models))
        if len(chosen) > 1:
            raise Ambiguous(name, available=[f"{model.provider_id}/{model.model_id}" for model in chosen])
        return self._providers[chosen[0].provider_id], chosen[0]

    async def all(self, tenant: str) -> list[model_pb2.Model]:
        """Returns all models that can be used, those of the providers first, in the order of the configuration."""

        async def unit(tx: Transaction) -> list[model_pb2.Model]:
            return await stored.of_tenant(tx, tenant)

        registered, *served = await asyncio.gather(
            self._store.read(unit), *(self._served(provider) for provider in self._providers.values())
        )
        built_in = [model for models in served for model in models]
        by_name = {(model.provider_id, model.provider_model_id): model for model in built_in}
        result = list(built_in)
        for model in registered:
            origin = by_name.get((model.provider_id, model.provider_model_id))
            if origin is not None:
                # What the provider knows of the model is its own to say, now and not when it was registered.
                model.context_tokens = origin.context_tokens
                model.embedding_dimension = origin.embedding_dimension
                model.tool_calling = origin.tool_calling
                model.type = origin.type
                result.append(model)
        return result

    async def register(self, tenant: str, request: model_service_pb2.RegisterModelRequest) -> model_pb2.Model:
        """Gives a model of a provider an id of its own.

        Raises:
            NotFound: there is no such provider.
            NotServed: the provider does not serve the model.
            AlreadyExists: the id is taken at that provider.
        """
        provider = self._provider(request.provider_id)
        wanted = request.provider_model_id or request.model_id
        served = await provider.models()
        origin = next((model for model in served if model.provider_model_id == wanted), None)
        if origin is None:
            raise NotServed("model", wanted, available=[model.provider_model_id for model in served])
        model = model_pb2.Model()
        model.CopyFrom(origin)
        model.model_id = request.model_id
        model.built_in = False
        model.metadata.clear()
        model.metadata.update(request.metadata)
        model.create_time.CopyFrom(_now())
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()

        async def unit(tx: Transaction) -> model_pb2.Model:
            if request.request_id:
                earlier = await stored.by_request(tx, tenant, request.request_id)
                if earlier is not None:
                    if earlier[0] != digest:
                        raise IdempotencyConflict("request_id", request.request_id)
                    return earlier[1]
            taken = any(other.model_id == model.model_id for other in served) or await stored.exists(
                tx, tenant, model.provider_id, model.model_id
            )
            if taken:
                raise AlreadyExists("model", f"{model.provider_id}/{model.model_id}")
            await stored.insert(tx, tenant, model, request.request_id, digest)
            return model

        return await self._store.write(unit)

    async def unregister(self, tenant: str, name: str) -> None:
        """Takes a registration back.

        Raises:
            NotFound: there is none.
            ResourceInUse: the model came with its provider.
        """
        _, model = await self.resolve(tenant, name)
        if model.built_in:
            raise ResourceInUse("model", name, used_by=f"its provider {model.provider_id}, which brings it")

        async def unit(tx: Transaction) -> None:
            await stored.delete(tx, tenant, model.provider_id, model.model_id)

        await self._store.write(unit)

    def _provider(self, provider_id: str) -> Provider:
        if not provider_id and len(self._providers) == 1:
            return next(iter(self._providers.values()))
        provider = self._providers.get(provider_id)
        if provider is None:
            raise NotFound("provider", provider_id, available=list(self._providers))
        return provider

    async def _served(self, provider: Provider) -> Sequence[model_pb2.Model]:
        """One provider that is away must not hide what the others serve."""
        try:
            return await provider.models()
        except TurnwireError as error:
            _log.warning("provider_models_unknown", provider_id=provider.provider_id, error=error.message)
            return []


def built_in(provider_id: str, name: str, **fields: object) -> model_pb2.Model:
    """Returns a model that comes with a provider, under the provider's own name."""
    return model_pb2.Model(
        model_id=name,
        provider_id=provider_id,
        provider_model_id=name,
        built_in=True,
        **fields,  # pyright: ignore[reportArgumentType] - fields of the message
    )


def _names(models: Sequence[model_pb2.Model]) -> list[str]:
    counts: dict[str, int] = {}
    for model in models:
        counts[model.model_id] = counts.get(model.model_id, 0) + 1
    return [
        model.model_id if counts[model.model_id] == 1 else f"{model.provider_id}/{model.model_id}" for model in models
    ]


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
