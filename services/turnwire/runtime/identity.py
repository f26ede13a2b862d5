"""Who calls: people and programs by API key, services by a short-lived token of the mesh."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from turnwire.runtime.steady_clock import SteadyClock
from turnwire.runtime.trace_context import next_traceparent, trace_id

if TYPE_CHECKING:
    from collections.abc import Generator

DEFAULT_TENANT = "default"
MESH_TOKEN_SECONDS = 300
_SCHEME = "mesh1"
_SOME_SPAN = f"{1:016x}"
_EXPIRY = re.compile("[0-9]{1,12}")
_clock = SteadyClock()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call, for which tenant, in which roles."""

    kind: Literal["user", "service", "anonymous"]
    subject: str
    tenant: str
    roles: frozenset[str]


ANONYMOUS = Caller("anonymous", "anonymous", DEFAULT_TENANT, frozenset({"admin"}))
"""Whoever calls when no access is configured; such a server listens on loopback only."""

_caller: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_request_id: ContextVar[str] = ContextVar("request_id", default="")
_traceparent: ContextVar[str] = ContextVar("traceparent", default="")


def current() -> Caller:
    """Returns who makes the present call."""
    return _caller.get()


def request_id() -> str:
    """Returns the id of the present call; empty outside of one."""
    return _request_id.get()


def traceparent() -> str:
    """Returns the W3C trace context of the present call; empty outside of one."""
    return _traceparent.get()


def remaining() -> float | None:
    """Returns the seconds that the present call has left, or None when it has no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def begin_call(caller: Caller, *, seconds: float | None, call_id: str, trace: str) -> None:
    """Sets who calls for the present task; gRPC gives each call a task of its own."""
    _caller.set(caller)
    _deadline.set(None if seconds is None else time.monotonic() + seconds)
    _request_id.set(call_id)
    _traceparent.set(trace)


@contextmanager
def acting_as(tenant: str, *, trace: str = "") -> Generator[None]:
    """Works for a tenant outside of any call: what was begun in one does not end with its deadline.

    It stays in the trace of the call that began it, or goes on in `trace`, a trace id, where another one called.
    """
    present = _traceparent.get()
    stays = not trace or trace_id(present) == trace
    tokens = (
        _caller.set(Caller("service", "turnwire", tenant, frozenset({"service"}))),
        _deadline.set(None),
        _request_id.set(""),
        _traceparent.set(present if stays else next_traceparent(f"00-{trace}-{_SOME_SPAN}-01")),
    )
    try:
        yield
    finally:
        for variable, token in zip((_caller, _deadline, _request_id, _traceparent), tokens, strict=True):
            variable.reset(token)  # pyright: ignore[reportArgumentType] - each token is of its variable


def mesh_token(secret: str, service: str, *, now: float | None = None) -> str:
    """Returns a token that proves to be a service of the mesh, good for five minutes."""
    expiry = int((now if now is not None else _clock.time()) + MESH_TOKEN_SECONDS)
    return f"{_SCHEME}.{service}.{expiry}.{_signature(secret, service, expiry)}"


def verify_mesh_token(secret: str, token: str) -> str | None:
    """Returns the service that a token belongs to, or None when it is forged or expired."""
    parts = token.split(".")
    # Whatever a stranger sends must not become an exception: digits of other scripts, thousands of them.
    if len(parts) != 4 or parts[0] != _SCHEME or _EXPIRY.fullmatch(parts[2]) is None:
        return None
    _, service, expiry, signature = parts
    if not hmac.compare_digest(signature.encode(), _signature(secret, service, int(expiry)).encode()):
        return None
    return service if int(expiry) > _clock.time() else None


def _signature(secret: str, service: str, expiry: int) -> str:
    return hmac.new(secret.encode(), f"{_SCHEME}.{service}.{expiry}".encode(), hashlib.sha256).hexdigest()
