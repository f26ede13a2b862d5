"""The memory banks: who keeps them, and which one a name means."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, cast
from weakref import WeakValueDictionary

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.errors import (
    AlreadyExists,
    IdempotencyConflict,
    InvalidArgument,
    NotFound,
    NotServed,
    ProviderUnavailable,
    ResourceInUse,
    TurnwireError,
)
from turnwire.ids import new_id
from turnwire.memory.store import banks as stored
from turnwire.memory.store.banks import Bank
from turnwire.memory.v1 import bank_pb2
from turnwire.runtime.failpoints import Boundary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.memory.banks.port import Kind, Provider
    from turnwire.memory.embedding import EmbeddingModel, Embeddings
    from turnwire.memory.v1 import memory_bank_service_pb2
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)

_REGISTRATION = Boundary("memory.bank_registered")

PROJECT_BANK = "turnwire-docs"
"""The bank of the project's own documents, which stands in every tenant."""
OF_ALL_TENANTS = ""
"""The tenant of what stands in every tenant."""
_CHUNK_TOKENS, _OVERLAP_TOKENS = 256, 32
_MARKS = 2
"""An embedding model puts a mark before and one behind a text; both count as what it reads."""


class Banks:
    """Finds banks by name, makes and removes them; they belong to a tenant and outlive a restart."""

    def __init__(self, store: Store, providers: Sequence[Provider], embeddings: Embeddings) -> None:
        """Knows these providers, in the order of the configuration."""
        self._store = store
        self._providers = {provider.provider_id: provider for provider in providers}
        self._embeddings = embeddings
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, uid: str) -> asyncio.Lock:
        """Returns the lock that whoever changes what a bank holds has meanwhile."""
        return self._locks.setdefault(uid, asyncio.Lock())

    async def all(self, tenant: str) -> list[Bank]:
        """Returns the banks that a tenant can use, by id."""

        async def unit(tx: Transaction) -> list[Bank]:
            return [*await stored.of_tenant(tx, tenant), *await stored.of_tenant(tx, OF_ALL_TENANTS)]

        return sorted(await self._store.read(unit), key=lambda bank: bank.message.bank_id)

    async def get(self, tenant: str, bank_id: str) -> Bank:
        """Returns a bank.

        Raises:
            NotFound: there is none of that id; the error names what there is.
        """

        async def unit(tx: Transaction) -> Bank | None:
            return await stored.by_id(tx, _home(tenant, bank_id), bank_id)

        bank = await self._store.read(unit)
        if bank is None:
            raise NotFound("memory bank", bank_id, available=[each.message.bank_id for each in await self.all(tenant)])
        return bank

    async def writable(self, tenant: str, bank_id: str) -> Bank:
        """Returns a bank that the tenant may change.

        Raises:
            NotFound: there is none of that id.
            ResourceInUse: it can be read only.
        """
        bank = await self.get(tenant, bank_id)
        if bank.tenant != tenant:
            raise ResourceInUse("memory bank", bank_id, used_by="Turnwire itself, which fills it: it can be read only")
        return bank

    def provider(self, bank: Bank) -> Provider:
        """Returns who keeps a bank.

        Raises:
            ProviderUnavailable: the provider is no longer configured.
        """
        provider = self._providers.get(bank.message.provider_id)
        if provider is None:
            raise ProviderUnavailable(bank.message.provider_id, "it is not configured: see `providers.memory`")
        return provider

    async def described(self, bank: Bank) -> bank_pb2.MemoryBank:
        """Returns a bank as callers see it, with its counts."""

        async def unit(tx: Transaction) -> tuple[int, int]:
            return await stored.counts(tx, bank.uid)

        message = bank_pb2.MemoryBank()
        message.CopyFrom(bank.message)
        message.documents, message.chunks = await self._store.read(unit)
        return message

    async def register(self, tenant: str, request: memory_bank_service_pb2.RegisterMemoryBankRequest) -> Bank:
        """Makes a bank.

        Raises:
            NotFound: there is no such provider, or no such model.
            NotServed: no provider keeps banks of that kind, or nothing makes vectors.
            AlreadyExists: the id is taken.
        """
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()

        async def repeated(tx: Transaction) -> Bank | None:
            earlier = await stored.by_request(tx, tenant, request.request_id) if request.request_id else None
            if earlier is not None and earlier[0] != digest:
                raise IdempotencyConflict("request_id", request.request_id)
            if earlier is None and await stored.by_id(tx, _home(tenant, bank_id), bank_id) is not None:
                raise AlreadyExists("memory bank", bank_id)
            return earlier[1] if earlier is not None else None

        bank_id = request.bank.bank_id
        # A repeat has its answer also when the provider, or the model, is away.
        first = await self._store.read(repeated)
        if first is not None:
            return first
        if bank_id == PROJECT_BANK:
            raise AlreadyExists("memory bank", bank_id)
        bank = await self._made(tenant, request.bank)
        provider = self.provider(bank)
        await provider.create(bank.place)

        async def unit(tx: Transaction) -> Bank:
            earlier = await repeated(tx)
            if earlier is None:
                await stored.insert(tx, bank, request.request_id, digest)
            return earlier or bank

        try:
            async with _REGISTRATION:
                registered = await self._store.write(unit)
        except TurnwireError:
            await provider.drop(bank.place)
            raise
        if registered.uid != bank.uid:
            # Another one with the same request id came first.
            await provider.drop(bank.place)
        return registered

    async def unregister(self, tenant: str, bank_id: str) -> None:
        """Removes a bank and what it holds; its index goes at once, or when its provider is back.

        Raises:
            NotFound: there is none.
            ResourceInUse: it can be read only.
        """
        await self.remove(await self.writable(tenant, bank_id))

    async def remove(self, bank: Bank) -> None:
        """Removes a bank and what it holds."""

        async def unit(tx: Transaction) -> None:
            await stored.drop(tx, bank.uid)

        async with self.lock(bank.uid):
            await self._store.write(unit)
            await self.drop_index(bank)

    async def drop_index(self, bank: Bank) -> bool:
        """Removes the index of a bank that was removed; false when its provider cannot now."""

        async def unit(tx: Transaction) -> None:
            await stored.forget(tx, bank.uid)

        try:
            await self.provider(bank).drop(bank.place)
        except TurnwireError as error:
            _log.warning("bank_index_left", bank_id=bank.message.bank_id, uid=bank.uid, error=error.message)
            return False
        await self._store.write(unit)
        return True

    def keeper(self, provider_id: str, kind: Kind) -> Provider:
        """Returns the provider of an id that keeps banks of a kind; without an id the first that does.

        Raises:
            NotFound: there is no provider of that id.
            NotServed: none keeps banks of that kind.
        """
        if provider_id and provider_id not in self._providers:
            raise NotFound("provider", provider_id, available=list(self._providers))
        for provider in self._providers.values():
            if kind in provider.kinds and provider_id in {"", provider.provider_id}:
                return provider
        kinds = sorted({each for provider in self._providers.values() for each in provider.kinds})
        raise NotServed("kind of memory bank", kind, available=kinds)

    async def _made(self, tenant: str, asked: bank_pb2.MemoryBank) -> Bank:
        kind = cast("Kind", asked.WhichOneof("config"))
        provider = self.keeper(asked.provider_id, kind)
        message = bank_pb2.MemoryBank()
        message.CopyFrom(asked)
        message.provider_id = provider.provider_id
        message.documents = message.chunks = 0
        message.built_in = False
        message.create_time.CopyFrom(_now())
        dimension = 0
        if kind == "vector":
            model = await self._embeddings.model(message.vector.embedding_model)
            dimension = model.dimension
            settle_vectors(message, model)
        elif kind == "keyword":
            _settle_chunks(message.keyword)
        elif kind == "graph":
            message.graph.depth = message.graph.depth or 1
        if kind == "keyvalue":
            message.keyvalue.SetInParent()
        return Bank(new_id("bank"), tenant, dimension, message)


def settle_vectors(message: bank_pb2.MemoryBank, model: EmbeddingModel) -> None:
    """Puts the model, and what was left out, into a vector bank.

    Raises:
        InvalidArgument: the model reads less than a chunk has.
    """
    message.vector.embedding_model = model.address
    read = max(1, model.context_tokens - _MARKS) if model.context_tokens else 0
    if read and message.vector.chunk_size_tokens > read:
        told = f"is {message.vector.chunk_size_tokens}, and {model.address} reads {read} tokens of a text"
        raise InvalidArgument.one("bank.vector.chunk_size_tokens", told)
    most = min(_CHUNK_TOKENS, read or _CHUNK_TOKENS)
    message.vector.chunk_size_tokens = message.vector.chunk_size_tokens or most
    _settle_chunks(message.vector)


def _settle_chunks(config: bank_pb2.VectorBankConfig | bank_pb2.KeywordBankConfig) -> None:
    config.chunk_size_tokens = config.chunk_size_tokens or _CHUNK_TOKENS
    config.overlap_tokens = config.overlap_tokens or min(_OVERLAP_TOKENS, config.chunk_size_tokens // 4)


def _home(tenant: str, bank_id: str) -> str:
    return OF_ALL_TENANTS if bank_id == PROJECT_BANK else tenant


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
