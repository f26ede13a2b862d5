"""What an error of PostgreSQL means for the units that met it."""

from __future__ import annotations

from enum import Enum, auto

import asyncpg


class Kind(Enum):
    """What is to be done."""

    CONFLICT = auto()
    """Another transaction came in between: the same units, run again, may well succeed."""
    TAKEN = auto()
    """A key is taken: by a transaction in between, or for good. A second run tells which."""
    AWAY = auto()
    """The database cannot be used now, or this connection to it."""
    OWN = auto()
    """The unit has done what it must not."""


_CONFLICTS = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, a lock that was not to be had in time."""
_AWAY_CLASSES = frozenset({"08", "28", "53", "57", "58", "XX"})
"""Connection, authorization, resources as disk and memory, an operator's doing, the system, a broken database."""
_AWAY = frozenset({"25006", "25P03", "25P04", "3D000", "0A000"})
"""It has become a standby; this connection was idle for too long; there is no such database; a plan is out of date."""


def kind_of(error: BaseException) -> Kind:
    """Returns what an error that a statement raised means."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(getattr(error, "sqlstate", "") or "")
        if state in _CONFLICTS:
            return Kind.CONFLICT
        if state == "23505":
            return Kind.TAKEN
        return Kind.AWAY if state in _AWAY or state[:2] in _AWAY_CLASSES else Kind.OWN
    if isinstance(error, ConnectionError | OSError | TimeoutError | asyncpg.InternalClientError):
        return Kind.AWAY
    if isinstance(error, asyncpg.InterfaceError):
        # What is wrong with an argument is a ValueError too; the others are about the connection.
        return Kind.OWN if isinstance(error, ValueError) or "argument" in str(error) else Kind.AWAY
    return Kind.OWN
