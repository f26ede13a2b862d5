"""Banks, as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from turnwire.memory.banks.port import Kind, Place
from turnwire.memory.v1 import bank_pb2

if TYPE_CHECKING:
    from turnwire.runtime.storage import Row, Transaction


@dataclass(frozen=True, slots=True)
class Bank:
    """A bank that was registered."""

    uid: str
    tenant: str
    dimension: int
    message: bank_pb2.MemoryBank
    """Without the counts."""

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return cast("Kind", self.message.WhichOneof("config"))

    @property
    def place(self) -> Place:
        """The bank, as its provider knows it."""
        return Place(self.uid, self.kind, self.dimension, self.message.graph.depth or 1)


async def insert(tx: Transaction, bank: Bank, request_id: str, digest: str) -> None:
    """Adds a bank."""
    await tx.execute(
        "INSERT INTO banks (uid, tenant, bank_id, dropped, dimension, generation, request_id, digest, body) "
        "VALUES ($1, $2, $3, 0, $4, 0, $5, $6, $7)",
        bank.uid,
        bank.tenant,
        bank.message.bank_id,
        bank.dimension,
        request_id,
        digest,
        bank.message.SerializeToString(),
    )


async def of_tenant(tx: Transaction, tenant: str) -> list[Bank]:
    """Returns the banks of a tenant, by id."""
    rows = await tx.fetch(f"{_SELECT} WHERE tenant = $1 AND dropped = 0 ORDER BY bank_id", tenant)
    return [_bank(row) for row in rows]


async def with_hidden(tx: Transaction) -> list[Bank]:
    """Returns the banks of all tenants whose index may hold versions that are not to be seen."""
    rows = await tx.fetch(f"{_SELECT} WHERE dropped = 0 AND uid IN (SELECT uid FROM hidden)")  # noqa: S608 - our own text
    return [_bank(row) for row in rows]


async def settle(tx: Transaction, bank: Bank) -> None:
    """Keeps what a bank was given after it was made."""
    body = bank.message.SerializeToString()
    await tx.execute("UPDATE banks SET dimension = $1, body = $2 WHERE uid = $3", bank.dimension, body, bank.uid)


async def by_id(tx: Transaction, tenant: str, bank_id: str) -> Bank | None:
    """Returns a bank, or None."""
    row = await tx.fetchrow(f"{_SELECT} WHERE tenant = $1 AND bank_id = $2 AND dropped = 0", tenant, bank_id)
    return _bank(row) if row is not None else None


async def by_request(tx: Transaction, tenant: str, request_id: str) -> tuple[str, Bank] | None:
    """Returns (digest, bank) of the registration that a request id made, or None."""
    row = await tx.fetchrow(
        "SELECT uid, tenant, dimension, body, digest FROM banks"
        " WHERE tenant = $1 AND request_id = $2 AND request_id <> '' AND dropped = 0",
        tenant,
        request_id,
    )
    return (str(row[4]), _bank(row)) if row is not None else None


async def dropped(tx: Transaction) -> list[Bank]:
    """Returns the banks whose index is still to be removed."""
    return [_bank(row) for row in await tx.fetch(f"{_SELECT} WHERE dropped = 1")]


async def drop(tx: Transaction, uid: str) -> None:
    """Takes a bank and its documents away; its row stays until its index is removed."""
    await tx.execute("UPDATE banks SET dropped = 1, generation = generation + 1 WHERE uid = $1", uid)
    await tx.execute(
        "DELETE FROM chunks WHERE revision IN (SELECT revision FROM documents WHERE uid = $1)"
        " OR revision IN (SELECT revision FROM hidden WHERE uid = $1)",
        uid,
    )
    await tx.execute("DELETE FROM documents WHERE uid = $1", uid)
    await tx.execute("DELETE FROM hidden WHERE uid = $1", uid)


async def forget(tx: Transaction, uid: str) -> None:
    """Removes the row of a dropped bank."""
    await tx.execute("DELETE FROM banks WHERE uid = $1 AND dropped = 1", uid)


async def generation(tx: Transaction, uid: str) -> int | None:
    """Returns the count of commits that changed what a question finds, or None when the bank is gone."""
    row = await tx.fetchrow("SELECT generation FROM banks WHERE uid = $1 AND dropped = 0", uid)
    return int(row[0] or 0) if row is not None else None


async def changed(tx: Transaction, uid: str) -> None:
    """Counts a commit that changes what a question finds."""
    await tx.execute("UPDATE banks SET generation = generation + 1 WHERE uid = $1", uid)


async def counts(tx: Transaction, uid: str) -> tuple[int, int]:
    """Returns how many documents and chunks a bank holds."""
    row = await tx.fetchrow("SELECT count(*), coalesce(sum(chunks), 0) FROM documents WHERE uid = $1", uid)
    assert row is not None
    return int(row[0] or 0), int(row[1] or 0)


_SELECT = "SELECT uid, tenant, dimension, body FROM banks"


def _bank(row: Row) -> Bank:
    message = bank_pb2.MemoryBank.FromString(cast("bytes", row[3]))
    return Bank(str(row[0]), str(row[1]), int(row[2] or 0), message)
