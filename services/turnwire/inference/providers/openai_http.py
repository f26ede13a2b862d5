"""HTTP to an OpenAI-compatible server: requests with their failures named, and streams of server-sent events.

aiohttp with a line splitter of our own and msgspec is what measured near the floor for a stream of tokens. Nothing is
tried again here: whoever asked sees each failure, and decides.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from yarl import URL

from turnwire.inference.providers.openai_failures import Failures

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_LONGEST_LINE = 4 * 1024 * 1024
_LONGEST_BODY = 64 * 1024 * 1024
_DRAIN_SECONDS = 0.25
"""A stream that has said its last word has so long to end; then its connection is not used again."""


class HttpTimeouts(msgspec.Struct, frozen=True):
    """How long each part of a request may take, in seconds."""

    connect: float
    first_byte: float
    silence: float


class OpenAiHttp:
    """Requests to one server."""

    def __init__(
        self, provider_id: str, base_url: str, api_key: str, headers: dict[str, str], timeouts: HttpTimeouts
    ) -> None:
        """Opens no connection yet."""
        self._base_url = base_url.rstrip("/")
        self._headers = dict(headers)
        if api_key and api_key != "none":
            self._headers["authorization"] = f"Bearer {api_key}"
        url = URL(base_url)
        self._address = str(url.with_user(None))
        self.failures = Failures(provider_id, [api_key, url.password or "", *headers.values()])
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, *, seconds: float) -> bytes:
        """Returns the body of a resource, within so many seconds."""
        try:
            async with asyncio.timeout(seconds), self._answered("GET", path, None, "", 0) as response:
                return await self._body(response, "")
        except TimeoutError:
            raise self.failures.broken("", f"{self._address} did not answer within {seconds:g} s") from None

    async def post(self, path: str, body: dict[str, Any], *, model: str) -> bytes:
        """Returns the body that a request is answered with."""
        try:
            async with (
                asyncio.timeout(self._timeouts.first_byte),
                self._answered("POST", path, body, model, 0) as response,
            ):
                return await self._body(response, model)
        except TimeoutError:
            raise self._silent(model, self._timeouts.first_byte) from None

    async def events(self, path: str, body: dict[str, Any], *, model: str, prompt_tokens: int) -> AsyncGenerator[bytes]:
        """Yields the data of the events of a stream, up to `[DONE]`.

        Raises:
            ProviderUnavailable: the connection broke, or went silent, before the end.
            ProviderError: what came is no stream of events.
        """
        async with self._answered("POST", path, body, model, prompt_tokens) as response:
            if response.content_type in {"application/json", "text/html"}:
                raise self.failures.malformed(model, await self._body(response, model))
            pending = b""
            chunks = response.content.iter_any()
            # Servers answer at once and read the prompt then: the first event may take as long as a first byte.
            patience = self._timeouts.first_byte
            while True:
                chunk = await self._next(chunks, model, patience)
                if not chunk:
                    # A line without its end is no event: the connection ended in the middle of it.
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                if len(pending) > _LONGEST_LINE:
                    raise self.failures.malformed(model, f"a line of more than {_LONGEST_LINE} bytes")
                for line in lines:
                    data = _data(line)
                    if data == b"[DONE]":
                        await _drained(response)
                        return
                    if data is not None:
                        patience = self._timeouts.silence
                        yield data

    async def _next(self, chunks: Any, model: str, patience: float) -> bytes:
        try:
            async with asyncio.timeout(patience):
                return await anext(chunks, b"")
        except TimeoutError:
            raise self._silent(model, patience) from None
        except aiohttp.ClientError as error:
            raise self.failures.broken(model, f"its connection broke: {_brief(error)}") from None

    @asynccontextmanager
    async def _answered(
        self, method: str, path: str, body: dict[str, Any] | None, model: str, prompt_tokens: int
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Gives a good answer; its connection is used again when it was read to its end."""
        response = await self._sent(method, path, body, model)
        try:
            if not 200 <= response.status < 300:
                refusal = await self._refusal(response)
                raise self.failures.refused(
                    response.status, response.headers, refusal, model=model, prompt_tokens=prompt_tokens
                )
            yield response
        finally:
            # aiohttp has given the connection back at the end of the body; one left in the middle is cut here.
            response.close()

    async def _sent(self, method: str, path: str, body: dict[str, Any] | None, model: str) -> aiohttp.ClientResponse:
        try:
            return await self._requested(method, path, body, model)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # A server closes connections that lie idle, and we may learn of it by using one. Before any answer, and
            # once: a second time it is the server.
            if isinstance(error, aiohttp.ClientConnectorError):
                raise self._unreachable(model, error) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._unreachable(model, error) from None
        try:
            return await self._requested(method, path, body, model)
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(model, error) from None

    async def _requested(
        self, method: str, path: str, body: dict[str, Any] | None, model: str
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect)
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=timeout, connector=connector, read_bufsize=1 << 16
            )
        data = msgspec.json.encode(body) if body is not None else None
        headers = {"content-type": "application/json"} if body is not None else {}
        limit = asyncio.timeout(self._timeouts.first_byte)
        try:
            async with limit:
                return await self._session.request(
                    method, f"{self._base_url}{path}", data=data, headers=headers, allow_redirects=False
                )
        except TimeoutError as error:
            if limit.expired():
                raise self._silent(model, self._timeouts.first_byte) from None
            raise self._unreachable(model, error) from None

    async def _body(self, response: aiohttp.ClientResponse, model: str) -> bytes:
        try:
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) > _LONGEST_BODY:
                    raise self.failures.malformed(model, f"more than {_LONGEST_BODY} bytes")
        except aiohttp.ClientError as error:
            raise self.failures.broken(model, f"its answer broke off: {_brief(error)}") from None
        return bytes(body)

    async def _refusal(self, response: aiohttp.ClientResponse) -> bytes:
        """What a refusal says is nice to have: neither its length nor its slowness may hold anybody up."""
        body = b""
        try:
            async with asyncio.timeout(5):
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > 64 * 1024:
                        break
        except (TimeoutError, aiohttp.ClientError):
            pass
        return body

    def _silent(self, model: str, seconds: float) -> Exception:
        return self.failures.broken(model, f"it was silent for {seconds:g} s")

    def _unreachable(self, model: str, error: BaseException) -> Exception:
        return self.failures.broken(model, f"{self._address}: {_brief(error)}")


def _data(line: bytes) -> bytes | None:
    """Returns the data of a line of an event stream; None for comments, other fields and empty lines."""
    line = line.rstrip(b"\r")
    return line[5:].strip() if line.startswith(b"data:") else None


async def _drained(response: aiohttp.ClientResponse) -> None:
    """Reads the end of a stream, so that its connection can be used again."""
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while await response.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError):
        # The answer is whole; only its connection is lost.
        pass


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()[:200]
