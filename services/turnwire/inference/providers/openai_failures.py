"""What an OpenAI-compatible server answers when it refuses, as errors with a name and numbers."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from turnwire.errors import (
    ContextLengthExceeded,
    InvalidArgument,
    ProviderError,
    ProviderRateLimited,
    ProviderUnauthenticated,
    ProviderUnavailable,
    TurnwireError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PASSING = frozenset({408, 500, 502, 503, 504, 529})
"""Statuses that say nothing against the request: it may be sent again."""
_LONGEST_DETAIL = 400
# How servers write of a prompt that does not fit. OpenAI: "maximum context length is 4097 tokens. However, your
# messages resulted in 5000 tokens". vLLM: "However, you requested 5000 tokens (4500 in the messages, 500 in the
# completion)", "your request has 5000 input tokens", "your prompt contains at least 5000 input tokens", "The decoder
# prompt (length 5000) is longer than the maximum model length of 4096", "You passed 5000 input tokens". llama.cpp
# sends `n_prompt_tokens` and `n_ctx` beside "request (5000 tokens) exceeds the available context size (4096 tokens)".
_PROMPT = (
    r"\((\d+) in (?:the |your )?(?:messages|prompt|input)",
    r"(\d+) (?:input|prompt) tokens",
    r"resulted in (\d+) tokens",
    r"prompt \(length (\d+)\)",
    r"request \((\d+) tokens\)",
    r"requested (?:about )?(\d+) tokens",
)
_WINDOW = (
    r"context length (?:is|of)(?: only)? (\d+)",
    r"maximum model length of (\d+)",
    r"context size \((\d+) tokens\)",
    r"context (?:window|limit)[^0-9]{0,20}(\d+)",
)
_DOES_NOT_FIT = re.compile(
    r"context_length_exceeded|exceed_context_size_error|maximum context length|maximum model length"
    r"|exceeds? the (?:available )?context (?:size|window|length)|exceeds the context window|model's context length",
    re.IGNORECASE,
)


class Failures:
    """Names the failures of one server. What a server says is told without the secrets it may repeat."""

    def __init__(self, provider_id: str, secrets: Sequence[str]) -> None:
        """`secrets` never stand in an error."""
        self._provider_id = provider_id
        self._secrets = [secret for secret in secrets if len(secret) > 3]

    def refused(
        self, status: int, headers: Mapping[str, str], body: bytes, *, model: str, prompt_tokens: int
    ) -> TurnwireError:
        """Returns the error of an answer that is no success. `prompt_tokens` is our guess where it names none."""
        error = _error_of(body)
        detail = self._said(error)
        if status in {401, 403}:
            return ProviderUnauthenticated(self._provider_id, f"HTTP {status}")
        if status == 429:
            return ProviderRateLimited(
                self._provider_id,
                detail or "too many requests",
                model=model,
                status=status,
                retry_after=retry_after(headers),
            )
        if status in {400, 413, 422} and _DOES_NOT_FIT.search(f"{detail} {error.get('code')} {error.get('type')}"):
            return _too_long(model, error, detail, prompt_tokens)
        if status in {400, 422}:
            named = error.get("param")
            field = f"request.{named}" if isinstance(named, str) and named else "request"
            return InvalidArgument.one(field, f"was refused by the provider {self._provider_id}: {detail}")
        if status in _PASSING:
            return ProviderUnavailable(
                self._provider_id,
                f"it answered HTTP {status}: {detail}",
                model=model,
                status=status,
                retry_after=retry_after(headers),
            )
        if 300 <= status < 400:
            detail = "it redirects elsewhere, which is not followed: set `base_url` to where the server is"
        if status == 404:
            detail += " (is the model still served, and does `base_url` end in the API's version, as /v1?)"
        return ProviderError(self._provider_id, f"HTTP {status}: {detail}", model=model, status=status)

    def in_stream(self, error: object, *, model: str, prompt_tokens: int) -> TurnwireError:
        """Returns the error of an error object in the middle of a stream."""
        told = error if isinstance(error, dict) else {"message": error}
        code = told.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 0
        if status:
            return self.refused(
                status, {}, json.dumps({"error": told}).encode(), model=model, prompt_tokens=prompt_tokens
            )
        detail = self._said(told)
        if _DOES_NOT_FIT.search(f"{detail} {code} {told.get('type')}"):
            return _too_long(model, told, detail, prompt_tokens)
        return ProviderError(self._provider_id, detail or "it sent an error that says nothing", model=model)

    def malformed(self, model: str, what: bytes | str) -> ProviderError:
        """Returns the error of an answer that is none of the API's."""
        text = what[:120].decode(errors="replace") if isinstance(what, bytes) else what
        return ProviderError(self._provider_id, f"it sent what is no answer: {self._hidden(text)!r}", model=model)

    def broken(self, model: str, detail: str) -> ProviderUnavailable:
        """Returns the error of a connection that broke or never was."""
        return ProviderUnavailable(self._provider_id, self._hidden(detail), model=model)

    def _said(self, error: Mapping[str, Any]) -> str:
        return self._hidden(str(error.get("message") or "")[:_LONGEST_DETAIL])

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a server wants us to wait: as milliseconds, seconds, or a date; None if it says none."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is in UTC, as HTTP has it.
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return max(0.0, value) if value is not None and math.isfinite(value) else None


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {"message": body[:_LONGEST_DETAIL].decode(errors="replace")}
    inner = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if isinstance(inner, dict):
        # FastAPI's own refusals have `detail` where the API has `message`.
        return inner if "message" in inner or "detail" not in inner else inner | {"message": inner["detail"]}
    return {"message": str(inner)}


def _too_long(model: str, error: Mapping[str, Any], detail: str, guessed: int) -> ContextLengthExceeded:
    prompt = error.get("n_prompt_tokens")
    window = error.get("n_ctx")
    return ContextLengthExceeded(
        model,
        prompt_tokens=prompt if isinstance(prompt, int) else _first(_PROMPT, detail) or guessed,
        context_tokens=window if isinstance(window, int) else _first(_WINDOW, detail) or 0,
    )


def _first(patterns: Sequence[str], text: str) -> int | None:
    for pattern in patterns:
        found = re.search(pattern, text, re.IGNORECASE)
        if found is not None:
            return int(found[1])
    return None
