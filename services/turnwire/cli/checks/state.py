"""What is kept on the disk: the settings file, and the stores of the services."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from turnwire.cli.checks.finding import Finding
from turnwire.cli.processes import described
from turnwire.cli.stores import SCHEMAS, Kept, look, schema_of, version_in
from turnwire.errors import ArtifactStoreUnavailable, StoreUnavailable
from turnwire.runtime.extras import ExtraMissing, imported
from turnwire.runtime.settings import Settings, SettingsError, find_settings_file

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path


def settings_file(file: Path | None, load: Callable[[], Settings]) -> tuple[Finding, Settings]:
    """Checks the settings that `load` loads; returns them too, or the defaults."""
    try:
        settings = load()
    except SettingsError as error:
        return Finding("settings", "problem", str(error), "`turnwire config schema` has all there is"), Settings()
    found = find_settings_file(file)
    where = str(found) if found is not None else "no file: the defaults hold"
    return Finding("settings", "ok", where), settings


def stores(settings: Settings, own: frozenset[int]) -> Finding:
    """Checks that the stores can be opened: no process but those of the mesh, `own`, has them, and none is too new."""
    if settings.store.url != "sqlite":
        return _in_postgresql(settings)
    told: list[str] = []
    for service in SCHEMAS:
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
            finding = _version(service, path)
        if finding is not None:
            return finding
        told.append(service)
    if not told:
        return Finding("stores", "ok", f"nothing is kept in {settings.data_dir} yet")
    return Finding("stores", "ok", f"{' and '.join(told)} in {settings.data_dir} can be used")


def artifacts(settings: Settings) -> Finding:
    """Checks that the object store of artifacts can be used."""
    try:
        module = imported("turnwire.tool_executor.artifacts.s3", setting="artifacts.url", extra="s3")
        where = asyncio.run(module.checked(settings.artifacts))
    except ExtraMissing as error:
        return Finding("artifacts", "problem", str(error), "pip install 'turnwire[s3]'")
    except ArtifactStoreUnavailable as error:
        return Finding("artifacts", "problem", error.detail, error.todo)
    return Finding("artifacts", "ok", f"{where} can be used")


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


def _version(service: str, path: Path) -> Finding | None:
    """Returns what keeps this version from using a store; None when nothing does."""
    try:
        present = version_in(path)
    except sqlite3.DatabaseError as error:
        return Finding(
            "stores",
            "problem",
            f"{path} cannot be read: {error}",
            f"put back a copy of it, or move it away: the {service} service then begins with nothing",
        )
    return _too_new(Kept(service, str(path), present, schema_of(service).version))


def _too_new(kept: Kept) -> Finding | None:
    if kept.state != "too new":
        return None
    return Finding(
        "stores",
        "problem",
        f"{kept.where} has schema version {kept.present}, and this Turnwire knows up to {kept.known}",
        "run the newer Turnwire again, or give this one another `--data-dir` or `store.url`",
    )


def _in_postgresql(settings: Settings) -> Finding:
    try:
        found = asyncio.run(look(settings))
    except ExtraMissing as error:
        return Finding("stores", "problem", str(error), "pip install 'turnwire[postgres]'")
    except StoreUnavailable as error:
        return Finding("stores", "problem", error.detail, "see `store.url` in the settings")
    for kept in found:
        finding = _too_new(kept)
        if finding is not None:
            return finding
    told = ", ".join(f"{kept.service} {kept.present or 'not there yet'}" for kept in found)
    said = f"{told}, in {found[0].where.partition(', schema')[0]}"
    behind = [kept.service for kept in found if kept.state == "to be migrated"]
    if behind:
        todo = "`turnwire store migrate` brings them up to date, and so do the services when they start"
        return Finding("stores", "note", f"{' and '.join(behind)} of an older version: {said}", todo)
    return Finding("stores", "ok", f"schema versions: {said}")
