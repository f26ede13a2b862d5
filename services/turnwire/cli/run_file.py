"""The file in which `turnwire up` says what runs and where."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from turnwire.cli.options import resolved
from turnwire.cli.processes import process_start
from turnwire.client.finding import RUN_FILE, find_mesh

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from turnwire.runtime.settings import Check, Settings


def run_file_of(settings: Settings) -> Path:
    """Returns where the mesh with these settings says how to reach it."""
    return settings.data_dir / RUN_FILE


def read_run_file(path: Path) -> dict[str, Any] | None:
    """Returns what a mesh wrote of itself, or None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "pid" in found else None


def write_run_file(path: Path, content: dict[str, Any]) -> None:
    """Writes what a mesh says of itself: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=2), encoding="utf-8")
    fresh.replace(path)


def is_running(mesh: dict[str, Any]) -> bool:
    """True when the process that wrote a run file still lives; another one may have its number by now."""
    return process_start(int(mesh["pid"])) == mesh.get("started") is not None


def running_mesh_of(settings: Settings) -> dict[str, Any] | None:
    """Returns what the mesh with these settings wrote of itself, if it runs."""
    found = read_run_file(run_file_of(settings))
    return found if found is not None and is_running(found) else None


def resolved_here(
    config_file: Path | None, data_dir: Path | None, port_offset: int | None = None, *, checks: Sequence[Check] = ()
) -> Settings:
    """Returns the settings of a command line that is about the mesh of this folder.

    Where nobody names a data directory it is that of the mesh that was started here or in a folder above.
    """
    settings = resolved(config_file, data_dir, port_offset, checks=checks)
    if "data_dir" in settings.model_fields_set:
        return settings
    mesh = find_mesh()
    if mesh is None or "data_dir" not in mesh:
        return settings
    return settings.model_copy(update={"data_dir": type(settings.data_dir)(mesh["data_dir"])})
