"""The store of a service: units of work over a transaction, many in one commit."""

from turnwire.runtime.storage.port import Heard, Migration, Row, Schema, SqlValue, Store, Transaction, Unit
from turnwire.runtime.storage.sqlite import SqliteStore

__all__ = ["Heard", "Migration", "Row", "Schema", "SqlValue", "SqliteStore", "Store", "Transaction", "Unit"]
