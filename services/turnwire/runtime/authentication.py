"""Credentials of a call, held against the configuration."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from turnwire.errors import PermissionDenied, Unauthenticated
from turnwire.runtime.access import allowed_roles, may_call
from turnwire.runtime.identity import ANONYMOUS, DEFAULT_TENANT, Caller, verify_mesh_token

if TYPE_CHECKING:
    from turnwire.runtime.settings import AccessSettings

_HINT = "send `authorization: Bearer KEY` with a key of `access.api_keys`"


class Authenticator:
    """Finds out who calls."""

    def __init__(self, access: AccessSettings, mesh_secret: str | None) -> None:
        """Without any key everybody is the anonymous admin of the default tenant."""
        self._mesh_secret = mesh_secret
        self._keys: dict[str, Caller] = {}
        for entry in access.api_keys:
            digest = entry.sha256 or hashlib.sha256((entry.key or "").encode()).hexdigest()
            self._keys[digest] = Caller("user", entry.name, entry.tenant, frozenset(entry.roles))

    @property
    def is_open(self) -> bool:
        """True when no key is configured."""
        return not self._keys

    def caller(self, method: str, metadata: dict[str, str]) -> Caller:
        """Returns who makes a call.

        Raises:
            Unauthenticated: there is no credential, or it is not good.
            PermissionDenied: the roles do not allow the method.
        """
        caller = self._identified(method, metadata)
        if not may_call(method, caller.roles):
            roles = ", ".join(sorted(caller.roles))
            needed = ", ".join(sorted(allowed_roles(method))) or "nobody"
            raise PermissionDenied(
                f"{caller.subject} has the roles {roles}; {method} is for {needed}.",
                metadata={"method": method, "subject": caller.subject, "roles": roles},
            )
        return caller

    def _identified(self, method: str, metadata: dict[str, str]) -> Caller:
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        if not token:
            if self.is_open or method.startswith("grpc.health.v1."):
                return ANONYMOUS
            raise Unauthenticated(f"{method} needs a credential: {_HINT}.", metadata={"method": method})
        if scheme.lower() != "bearer":
            raise Unauthenticated(f"The scheme {scheme[:20]!r} is not known: {_HINT}.", metadata={"method": method})
        if self._mesh_secret is not None:
            service = verify_mesh_token(self._mesh_secret, token)
            if service is not None:
                tenant = metadata.get("turnwire-tenant") or DEFAULT_TENANT
                return Caller("service", service, tenant, frozenset({"service"}))
        known = self._keys.get(hashlib.sha256(token.encode()).hexdigest())
        if known is None:
            raise Unauthenticated(f"The credential is unknown or expired: {_HINT}.", metadata={"method": method})
        return known
