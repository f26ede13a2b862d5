"""HTTP to a maker's API: bounded answers, failures with a name, and no key in any of them."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import aiohttp
from yarl import URL

from turnwire.errors import ProviderError, ProviderRateLimited, ProviderUnauthenticated, ProviderUnavailable
from turnwire.tool_executor.limits import LimitPassed
from turnwire.tool_executor.tools.port import NeverSent, OutcomeLost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from turnwire.errors import TurnwireError
    from turnwire.tool_executor.tools.port import Call

CALL_ID_HEADER = "turnwire-call-id"
_LONGEST_DETAIL = 300
_PASSING = frozenset({408, 500, 502, 503, 504})
_LOST = frozenset({502, 504})
"""Said by what stands between: whether the server behind it did what it was asked is not known."""
_NEVER_ASKED = (aiohttp.ClientConnectorError, aiohttp.InvalidURL)
_REFUSAL_BYTES = 64 * 1024
_REFUSAL_SECONDS = 5.0


class WebApi:
    """One API at one address. Redirects are not followed, and nothing is tried again."""

    def __init__(self, provider_id: str, base_url: str, secrets: Sequence[str]) -> None:
        """`secrets` never stand in an error. Opens no connection yet."""
        self.provider_id = provider_id
        self._base_url = URL(base_url)
        self._secrets = [secret for secret in (*secrets, self._base_url.password or "") if len(secret) > 3]
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def answer(
        self,
        method: str,
        path: str,
        call: Call,
        *,
        most: int,
        secret: str = "",
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Returns the JSON of a good answer to a call, of at most so many bytes. `secret` is of this request alone.

        The other side finds the call in the header `Turnwire-Call-Id`: with it an operator's own tool can tell a call
        that it has seen.

        Raises:
            ProviderUnauthenticated: it refused the key.
            ProviderRateLimited: it wants fewer requests.
            ProviderUnavailable: it cannot answer now.
            NeverSent: it cannot be reached.
            LimitPassed: it could not be reached in time.
            OutcomeLost: it was asked, and its answer was lost on the way.
            ProviderError: it refused the request, or what came is no answer.
        """
        hidden = _Hidden([*self._secrets, secret])
        try:
            async with self._answered(
                method, path, call.limits.connect, params, body, {CALL_ID_HEADER: call.call_id, **(headers or {})}
            ) as response:
                call.heard()
                if not 200 <= response.status < 300:
                    refused = self._refused(response.status, response.headers, await _refusal(response), hidden)
                    if response.status in _LOST:
                        raise OutcomeLost(f"{self._base_url.host} answered HTTP {response.status}", refused)
                    raise refused
                data = await response.content.read(most + 1)
                while len(data) <= most and (more := await response.content.read(most + 1 - len(data))):
                    call.heard()
                    data += more
        except aiohttp.ConnectionTimeoutError:
            raise LimitPassed("connect", call.limits.connect) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            told = hidden.of(f"{self._base_url.host}: {type(error).__name__} {error}".strip())
            unavailable = ProviderUnavailable(self.provider_id, told[:_LONGEST_DETAIL])
            if isinstance(error, _NEVER_ASKED):
                raise NeverSent(unavailable) from None
            raise OutcomeLost(
                f"the connection broke after it was asked ({told[:_LONGEST_DETAIL]})", unavailable
            ) from None
        if len(data) > most:
            raise ProviderError(self.provider_id, f"it answered with more than {most} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            shown = hidden.of(data[:120].decode(errors="replace"))
            raise ProviderError(self.provider_id, f"it sent what is no JSON: {shown!r}") from None

    @asynccontextmanager
    async def _answered(
        self,
        method: str,
        path: str,
        connect: float,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        if self._session is None:
            # Proxies of the environment are not ours to use, and cookies of one tenant not another's.
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        url = f"{str(self._base_url).rstrip('/')}{path}"
        response = await self._session.request(
            method,
            url,
            params=params,
            json=body,
            headers={"accept": "application/json", **headers},
            timeout=aiohttp.ClientTimeout(total=None, connect=connect),
            allow_redirects=False,
        )
        try:
            yield response
        finally:
            response.close()

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes, hidden: _Hidden) -> TurnwireError:
        detail = hidden.of(_said(body))[:_LONGEST_DETAIL]
        if status in {401, 403}:
            return ProviderUnauthenticated(self.provider_id, f"HTTP {status} {detail}".strip())
        if status == 429:
            return ProviderRateLimited(
                self.provider_id, detail or "too many requests", status=status, retry_after=_retry_after(headers)
            )
        if status in _PASSING:
            return ProviderUnavailable(
                self.provider_id,
                f"it answered HTTP {status}: {detail}",
                status=status,
                retry_after=_retry_after(headers),
            )
        if 300 <= status < 400:
            detail = "it redirects elsewhere, which is not followed: set `base_url` to where the API is"
        return ProviderError(self.provider_id, f"HTTP {status}: {detail}", status=status)


class _Hidden:
    """Tells what a server says without the secrets that it may repeat, also as they stand in addresses."""

    def __init__(self, secrets: Sequence[str]) -> None:
        long = [secret for secret in secrets if len(secret) > 3]
        self._forms = [form for secret in long for form in (secret, quote(secret, safe=""), quote_plus(secret))]

    def of(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, "…")
        return text


async def _refusal(response: aiohttp.ClientResponse) -> bytes:
    """Returns what a server says of its refusal, as far as it comes soon."""
    body = b""
    try:
        async with asyncio.timeout(_REFUSAL_SECONDS):
            async for part in response.content.iter_any():
                body += part
                if len(body) > _REFUSAL_BYTES:
                    break
    except (TimeoutError, aiohttp.ClientError):
        pass
    return body


def _said(body: bytes) -> str:
    """Returns the words of a refusal, in whichever of the makers' forms."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        return " ".join(body[:_LONGEST_DETAIL].decode(errors="replace").split())
    for _ in range(4):
        if isinstance(told, list) and told:
            told = told[0]
        elif isinstance(told, dict):
            told = next((told[key] for key in ("error", "errors", "detail", "message", "msg") if key in told), "")
        else:
            break
    return told if isinstance(told, str) else json.dumps(told)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
