"""The client of a command: connected to the mesh that runs here, or to the one that the environment names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from turnwire.client import Client, find_mesh

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from turnwire.runtime.settings import TlsSettings

_TLS_FIELDS = ("certificate", "key", "ca", "client_ca")


def connected() -> AbstractAsyncContextManager[Client]:
    """Returns the context of a client of the mesh.

    Where it is: `TURNWIRE_<SERVICE>_ADDRESS`, or the file that `turnwire up` wrote. TLS: `TURNWIRE_TLS_CA`, and for
    mutual TLS `TURNWIRE_TLS_CLIENT_CA`, `TURNWIRE_TLS_CERTIFICATE` and `TURNWIRE_TLS_KEY`, or what that file says.
    """
    return Client.connect(tls=_tls())


def _tls() -> TlsSettings | None:
    written = (find_mesh() or {}).get("tls") or {}
    named = {name: os.environ.get(f"TURNWIRE_TLS_{name.upper()}") or written.get(name) for name in _TLS_FIELDS}
    paths = {name: Path(value) for name, value in named.items() if value}
    if not paths:
        return None
    from turnwire.runtime.settings import TlsSettings  # loads slowly, and most meshes on one machine have no TLS

    return TlsSettings.model_validate(paths)
