"""What is kept on the disk: the settings file, and the stores of the services."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from turnwire.cli.checks.finding import Finding
from turnwire.cli.processes import described
from turnwire.runtime.settings import Settings, SettingsError, find_settings_file

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

_SCHEMAS = {"agent": "turnwire.agent.store.schema", "inference": "turnwire.inference.store.schema"}
"""The services that keep something, and where their schemas are."""


def settings_file(file: Path | None, load: Callable[[], Settings]) -> tuple[Finding, Settings]:
    """Checks the settings that `load` loads; returns them too, or the defaults."""
    try:
        settings = load()
    except SettingsError as error:
        return Finding("settings", "problem", str(error), "`turnwire config schema` has all there is"), Settings()
    found = find_settings_file(file)
    where = str(found) if found is not None else "no file: the defaults hold"
    if settings.store.url != "sqlite":
        said = f"{where}: store.url: this version keeps its state in SQLite only"
        return Finding("settings", "problem", said, "set `store.url` to `sqlite`"), settings
    return Finding("settings", "ok", where), settings


def stores(settings: Settings, own: frozenset[int]) -> Finding:
    """Checks that the stores can be opened: no process but those of the mesh, `own`, has them, and none is too new."""
    told: list[str] = []
    for service, module in _SCHEMAS.items():
        path = settings.data_dir / f"{service}.sqlite3"
        if not path.exists():
            continue
        with _holder(path) as holder:
            if holder is not None and holder not in own:
                by = described(holder) if holder else "a process that cannot be named"
                return Finding(
                    "stores",
                    "problem",
                    f"{path} is locked by {by}, and on SQLite a service is one process",
                    "end that process, or give this mesh another `--data-dir`",
                )
            schema: Any = import_module(module)
            finding = _version(service, path, int(schema.SCHEMA.version))
        if finding is not None:
            return finding
        told.append(service)
    if not told:
        return Finding("stores", "ok", f"nothing is kept in {settings.data_dir} yet")
    return Finding("stores", "ok", f"{' and '.join(told)} in {settings.data_dir} can be used")


@contextmanager
def _holder(path: Path) -> Generator[int | None]:
    """Gives the process that has a store open, 0 for one that cannot be named, None when there is none.

    None means that the lock is held here, shared, until the context is left: no service begins to write meanwhile.
    """
    try:
        lock = os.open(f"{path}.lock", os.O_RDONLY)
    except OSError:
        yield None  # no service has opened it as it is
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            told = os.pread(lock, 32, 0).decode(errors="replace").strip()
            yield int(told) if told.isdigit() else 0
        else:
            yield None
    finally:
        os.close(lock)


def _version(service: str, path: Path, supported: int) -> Finding | None:
    """Returns what keeps this version from using a store; None when nothing does."""
    # Without its log beside it the file is whole, and nothing has to be written to read it.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=2.0)) as connection:
            row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        return Finding(
            "stores",
            "problem",
            f"{path} cannot be read: {error}",
            f"put back a copy of it, or move it away: the {service} service then begins with nothing",
        )
    present = int(row[0] or 0)
    if present <= supported:
        return None
    return Finding(
        "stores",
        "problem",
        f"{path} has schema version {present}, and this Turnwire knows up to {supported}",
        "run the newer Turnwire again, or give this one another `--data-dir`",
    )
