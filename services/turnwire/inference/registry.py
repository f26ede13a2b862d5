"""The models that can be used: what the providers serve, and the names that were registered for them."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.errors import (
    AlreadyExists,
    Ambiguous,
    IdempotencyConflict,
    InvalidArgument,
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
            TurnwireError: a provider that may serve it cannot be asked.
        """
        known = await self._known(tenant)
        found = [model for model in known.models if name in {model.model_id, _address(model)}]
        # A full address is beyond doubt, also where another model's own id looks like it.
        chosen = [model for model in found if name == _address(model)] or found
        if not chosen:
            for provider_id, failure in known.silent.items():
                # It may well serve the model: that it is away is the truth, and passes.
                addressed = name.startswith(f"{provider_id}/") or name in known.hidden.get(provider_id, ())
                if addressed or not any(name.startswith(f"{other}/") for other in self._providers):
                    raise failure
            raise NotFound("model", name, available=_names(known.models))
        if len(chosen) > 1:
            raise Ambiguous(name, available=[_address(model) for model in chosen])
        return self._providers[chosen[0].provider_id], chosen[0]

    async def all(self, tenant: str) -> list[model_pb2.Model]:
        """Returns all that can be used: what providers bring, in the order of the configuration, then registrations."""
        return (await self._known(tenant)).models

    async def register(self, tenant: str, request: model_service_pb2.RegisterModelRequest) -> model_pb2.Model:
        """Gives a model of a provider an id of its own.

        Raises:
            NotFound: there is no such provider.
            NotServed: the provider does not serve the model.
            InvalidArgument: the provider knows that the model is for something else.
            AlreadyExists: the id is taken at that provider.
        """
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()

        async def repeated(tx: Transaction) -> model_pb2.Model | None:
            earlier = await stored.by_request(tx, tenant, request.request_id) if request.request_id else None
            if earlier is not None and earlier[0] != digest:
                raise IdempotencyConflict("request_id", request.request_id)
            return earlier[1] if earlier is not None else None

        # A repeat has its answer also when the provider is away.
        first = await self._store.read(repeated)
        if first is not None:
            return first
        provider = self._provider(request.provider_id)
        wanted = request.provider_model_id or request.model_id
        served = await provider.models()
        origin = next((model for model in served if model.provider_model_id == wanted), None)
        if origin is None:
            raise NotServed("model", wanted, available=[model.provider_model_id for model in served])
        model = model_pb2.Model()
        model.CopyFrom(origin)
        model.model_id = request.model_id
        model.type = _type(origin, request)
        model.built_in = False
        model.metadata.clear()
        model.metadata.update(request.metadata)
        model.create_time.CopyFrom(_now())

        async def unit(tx: Transaction) -> model_pb2.Model:
            earlier = await repeated(tx)
            if earlier is not None:
                return earlier
            taken = any(other.model_id == model.model_id for other in served) or await stored.exists(
                tx, tenant, model.provider_id, model.model_id
            )
            if taken:
                raise AlreadyExists("model", _address(model))
            await stored.insert(tx, tenant, model, request.request_id, digest)
            return model

        return await self._store.write(unit)

    async def unregister(self, tenant: str, name: str) -> None:
        """Takes a registration back, also one whose provider has gone.

        Raises:
            NotFound: there is none.
            Ambiguous: several providers have one of that id.
            ResourceInUse: the model came with its provider.
        """

        async def unit(tx: Transaction) -> bool:
            rows = await stored.of_tenant(tx, tenant)
            found = [row for row in rows if name == _address(row)] or [row for row in rows if name == row.model_id]
            if len(found) > 1:
                raise Ambiguous(name, available=[_address(row) for row in found])
            for row in found:
                await stored.delete(tx, tenant, row.provider_id, row.model_id)
            return bool(found)

        if not await self._store.write(unit):
            _, model = await self.resolve(tenant, name)
            raise ResourceInUse("model", name, used_by=f"its provider {model.provider_id}, which brings it")

    async def _known(self, tenant: str) -> _Known:
        async def unit(tx: Transaction) -> list[model_pb2.Model]:
            return await stored.of_tenant(tx, tenant)

        registered, answers = await asyncio.gather(
            self._store.read(unit), asyncio.gather(*(self._served(each) for each in self._providers.values()))
        )
        known = _Known()
        for provider_id, answer in zip(self._providers, answers, strict=True):
            if isinstance(answer, TurnwireError):
                known.silent[provider_id] = answer
            else:
                known.models.extend(answer)
        by_name = {(model.provider_id, model.provider_model_id): model for model in known.models}
        for model in registered:
            origin = by_name.get((model.provider_id, model.provider_model_id))
            if origin is not None:
                # What the provider knows of the model is its own to say, now and not when it was registered.
                model.context_tokens = origin.context_tokens
                model.embedding_dimension = origin.embedding_dimension
                model.tool_calling = origin.tool_calling
                model.type = origin.type or model.type
                known.models.append(model)
            else:
                known.hidden.setdefault(model.provider_id, set()).add(model.model_id)
        known.models = [_told(model) for model in known.models]
        return known

    def _provider(self, provider_id: str) -> Provider:
        if not provider_id and len(self._providers) == 1:
            return next(iter(self._providers.values()))
        provider = self._providers.get(provider_id)
        if provider is None:
            raise NotFound("provider", provider_id, available=list(self._providers))
        return provider

    async def _served(self, provider: Provider) -> list[model_pb2.Model] | TurnwireError:
        """One provider that is away must not hide what the others serve."""
        try:
            return list(await provider.models())
        except TurnwireError as error:
            _log.warning("provider_models_unknown", provider_id=provider.provider_id, error=error.message)
            return error


@dataclass(slots=True)
class _Known:
    models: list[model_pb2.Model] = field(default_factory=list[model_pb2.Model])
    silent: dict[str, TurnwireError] = field(default_factory=dict[str, TurnwireError])
    """Providers that cannot be asked, and why."""
    hidden: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Registered ids whose provider does not serve their model now."""


def built_in(provider_id: str, name: str, **fields: object) -> model_pb2.Model:
    """Returns a model that comes with a provider, under the provider's own name."""
    return model_pb2.Model(
        model_id=name,
        provider_id=provider_id,
        provider_model_id=name,
        built_in=True,
        **fields,  # pyright: ignore[reportArgumentType] - fields of the message
    )


def _address(model: model_pb2.Model) -> str:
    return f"{model.provider_id}/{model.model_id}"


def _told(model: model_pb2.Model) -> model_pb2.Model:
    """A model that its provider cannot tell the purpose of is one for chat, until a registration says otherwise."""
    if model.type != model_pb2.MODEL_TYPE_UNSPECIFIED:
        return model
    told = model_pb2.Model()
    told.CopyFrom(model)
    told.type = model_pb2.MODEL_TYPE_CHAT
    return told


def _type(origin: model_pb2.Model, request: model_service_pb2.RegisterModelRequest) -> model_pb2.ModelType.ValueType:
    if origin.type == model_pb2.MODEL_TYPE_UNSPECIFIED:
        return request.type or model_pb2.MODEL_TYPE_CHAT
    if request.type not in {model_pb2.MODEL_TYPE_UNSPECIFIED, origin.type}:
        kind = model_pb2.ModelType.Name(origin.type)
        raise InvalidArgument.one("type", f"is {kind} by the word of its provider: leave it out")
    return origin.type


def _names(models: Sequence[model_pb2.Model]) -> list[str]:
    counts: dict[str, int] = {}
    for model in models:
        counts[model.model_id] = counts.get(model.model_id, 0) + 1
    return [model.model_id if counts[model.model_id] == 1 else _address(model) for model in models]


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
