"""The mesh that runs on this machine, found by the file that `turnwire up` writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_FILE = Path("run") / "mesh.json"
"""Below the data directory."""


def find_mesh(start: Path | None = None, environ: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """Returns what `turnwire up` wrote of its mesh, or None.

    Looked for in `TURNWIRE_DATA_DIR`, else in `.turnwire` of this folder and of those above it.
    """
    named = environ.get("TURNWIRE_DATA_DIR")
    if named:
        return _read(Path(named) / RUN_FILE)
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        found = _read(candidate / ".turnwire" / RUN_FILE)
        if found is not None:
            return found
    return None


def address_of(service: str, environ: Mapping[str, str] = os.environ) -> str:
    """Returns where a service is: `TURNWIRE_<SERVICE>_ADDRESS`, the mesh that runs here, or the usual port."""
    from turnwire.runtime.settings import PORTS  # settings load slowly, and a mesh file needs none

    named = environ.get(f"TURNWIRE_{service.upper()}_ADDRESS")
    if named:
        return named
    mesh = find_mesh(environ=environ)
    if mesh is not None and service in mesh["addresses"]:
        return str(mesh["addresses"][service])
    return f"127.0.0.1:{PORTS[service]}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
