"""Errors in the shape of OpenAI's API, with the HTTP status that its clients go by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from turnwire.errors import ContextLengthExceeded, InvalidArgument, NotFound, TurnwireError, Unauthenticated
from turnwire_gateway.statuses import http_status

if TYPE_CHECKING:
    from collections.abc import Mapping

_CODES: Mapping[type[TurnwireError], str] = {
    ContextLengthExceeded: "context_length_exceeded",
    Unauthenticated: "invalid_api_key",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PARAMETERS = (
    ("sampling_parameters.max_tokens", "max_completion_tokens"),
    ("sampling_parameters.stop_sequences", "stop"),
    ("sampling_parameters.top_p.temperature", "temperature"),
    ("sampling_parameters.top_p.top_p", "top_p"),
    ("sampling_parameters.", ""),
    ("overrides.config.", ""),
    ("response_format.json_schema", "response_format.json_schema.schema"),
)
"""What a field of ours is called in OpenAI's API: the first that fits is replaced."""


class Refused(Exception):
    """A request that cannot be honoured, with the parameter that is why."""

    def __init__(self, param: str | None, message: str, *, code: str | None = None) -> None:
        """`code` as OpenAI's clients may know it."""
        super().__init__(message)
        self.param = param
        self.message = message
        self.code = code


def error_object(error: TurnwireError | Refused) -> dict[str, Any]:
    """Returns an error as OpenAI's API tells it. All four keys stand in its schema, null where there is nothing."""
    if isinstance(error, Refused):
        fields = (error.message, "invalid_request_error", error.param, error.code)
    else:
        fields = (error.message, _type(error), _param(error), _code(error))
    return {"error": dict(zip(("message", "type", "param", "code"), fields, strict=True))}


def error_response(error: TurnwireError | Refused) -> Response:
    """Returns the response of a failed request."""
    status = 400 if isinstance(error, Refused) else _status(error)
    body = json.dumps(error_object(error), ensure_ascii=False).encode()
    response = Response(body, status, media_type="application/json")
    if isinstance(error, TurnwireError) and error.retry_after is not None:
        response.headers["retry-after"] = str(max(1, round(error.retry_after)))
    return response


def _status(error: TurnwireError) -> int:
    number, _ = error.code.value
    return http_status(number)


def _type(error: TurnwireError) -> str:
    status = _status(error)
    return _TYPES.get(status, "invalid_request_error" if status < 499 else "server_error")


def _param(error: TurnwireError) -> str | None:
    if isinstance(error, NotFound):
        return "model" if error.metadata.get("resource_type") in {"model", "agent"} else None
    if not isinstance(error, InvalidArgument) or not error.violations:
        return None
    field = error.violations[0].field
    for ours, theirs in _PARAMETERS:
        field = field.replace(ours, theirs)
    return field


def _code(error: TurnwireError) -> str | None:
    if isinstance(error, NotFound) and _param(error) == "model":
        return "model_not_found"
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
