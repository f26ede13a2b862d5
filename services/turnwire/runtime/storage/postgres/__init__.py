"""A store in PostgreSQL, which several replicas of a service share; needs the extra `postgres`."""

from turnwire.runtime.storage.postgres.migrations import migrate, present_version
from turnwire.runtime.storage.postgres.server import PostgresServer
from turnwire.runtime.storage.postgres.store import PostgresStore

__all__ = ["PostgresServer", "PostgresStore", "migrate", "present_version"]
