"""Where the database is, and how connections to it are made."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from turnwire.errors import StoreUnavailable
from turnwire.runtime.storage.postgres.failures import Kind, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 15.0
"""A statement that takes longer has met a server that hangs, or a network that swallows."""
_HINTS = {
    "28000": "look at the user of `store.url`, and at the server's pg_hba.conf",
    "28P01": "look at the password of `store.url`",
    "3D000": "make the database with `createdb`, or name another one in `store.url`",
    "42501": "let the user create schemas in the database: GRANT CREATE ON DATABASE … TO …",
    "53300": "raise the server's max_connections, or lower `store.connections`",
}
_SETTINGS = {
    "jit": "off",  # it costs more than such statements do
    # A process that was stopped in the middle of a transaction must not hold the others up.
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
}


class PostgresServer:
    """A database of a server, and the schema of one service in it."""

    def __init__(self, url: str, service: str) -> None:
        """Connects to nothing yet."""
        self._url = url
        self.service = service
        self.schema = f"turnwire_{service.replace('-', '_')}"
        self.where = f"{_without_secrets(url)}, schema {self.schema}"
        """What may be shown: no password is in it."""

    async def connect(self, *, patient: bool = False, **settings: str) -> Any:
        """Opens a connection; a `patient` one lets statements take their time.

        Raises:
            StoreUnavailable: it cannot be had.
        """
        given: Mapping[str, str] = {
            "search_path": f'"{self.schema}"',
            "application_name": f"turnwire {self.service}",
            **({} if patient else _SETTINGS),
            **settings,
        }
        try:
            async with asyncio.timeout(2 * _CONNECT_SECONDS):
                connection: Any = await asyncpg.connect(
                    self._url,
                    timeout=_CONNECT_SECONDS,
                    command_timeout=None if patient else _STATEMENT_SECONDS,
                    statement_cache_size=1024,
                    max_cached_statement_lifetime=0,
                    server_settings=dict(given),
                )
                # Sums of integers come as decimals.
                await connection.set_type_codec(
                    "numeric", schema="pg_catalog", encoder=str, decoder=_number, format="text"
                )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as error:
            raise self.unavailable(error) from None  # its traceback may show the password
        return connection

    def unavailable(self, error: BaseException) -> StoreUnavailable:
        """Returns the error that callers get, with what to do where that is known."""
        said = str(error).strip() or f"no answer within {_CONNECT_SECONDS:g} s ({type(error).__name__})"
        password = unquote(urlsplit(self._url).password or "")
        if password:
            said = said.replace(password, "***")
        hint = _HINTS.get(str(getattr(error, "sqlstate", "")))
        if hint is None and isinstance(error, OSError | TimeoutError):
            hint = "is PostgreSQL running there, and is `store.url` right?"
        return StoreUnavailable(self.service, f"{self.where}: {said}" + (f" ({hint})" if hint else ""))


def is_away(error: BaseException) -> bool:
    """True when an error says that the database, or the connection, is gone."""
    return isinstance(error, StoreUnavailable) or kind_of(error) is Kind.AWAY


def _number(text: str) -> int | float:
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() else float(number)


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    wanted = parse_qs(parts.query)
    host = parts.netloc.rpartition("@")[2] or ",".join(wanted.get("host", [])) or "the local server"
    return f"PostgreSQL at {host}, database {parts.path.lstrip('/') or 'of the user'}"
