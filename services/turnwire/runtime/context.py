"""What a service is given when it is mounted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from turnwire.runtime.extras import imported
from turnwire.runtime.storage import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from turnwire.common.v1 import inspect_service_pb2
    from turnwire.runtime.settings import Settings
    from turnwire.runtime.storage import Schema, Store

DescribeProviders = Callable[[], Awaitable[Sequence["inspect_service_pb2.Provider"]]]


@dataclass(slots=True)
class ServiceContext:
    """The process around one service."""

    name: str
    settings: Settings
    data_dir: Path
    instance_id: str
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set on SIGTERM, while calls are still being served."""
    describe_providers: list[DescribeProviders] = field(default_factory=list["DescribeProviders"])

    def add_providers(self, describe: DescribeProviders) -> None:
        """Lets InspectService list the providers of the service."""
        self.describe_providers.append(describe)

    async def open_store(self, schema: Schema) -> Store:
        """Opens the store of the service, its schema brought up to date. Whoever opens it closes it.

        Raises:
            StoreUnavailable: it cannot be opened.
            SchemaUnsupported: a newer version has written it.
            ExtraMissing: it is PostgreSQL, and the package for that is not installed.
        """
        store = self.settings.store
        if store.url == "sqlite":
            return await SqliteStore.open(self.data_dir / f"{schema.name}.sqlite3", schema)
        module = imported("turnwire.runtime.storage.postgres", setting="store.url", extra="postgres")
        opened: Store = await module.PostgresStore.open(store.url, schema, connections=store.connections)
        return opened
