"""The interpreter and the packages that a sandbox gets to read: these, and nothing else of the installation."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CACHES = ("/var/cache", "/var/tmp")  # noqa: S108 - a folder in it is made with care


@dataclass(frozen=True, slots=True)
class Libraries:
    """A Python and packages, where they lie on this machine."""

    python: Path
    """The interpreter, no link."""
    prefix: Path
    """The folder with its standard library."""
    packages: tuple[Path, ...]
    """Folders and files of packages."""
    missing: tuple[str, ...]
    """Packages that were asked for and are not installed."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the packages lie."""
        return tuple(dict.fromkeys(path.parent for path in self.packages))

    @property
    def in_system(self) -> bool:
        """True when the interpreter is the system's own, below `/usr`."""
        return self.prefix.is_relative_to("/usr")


def find(packages: Iterable[str]) -> Libraries:
    """Returns this interpreter, and the packages named with all they need."""
    found: dict[Path, None] = {}
    missing: list[str] = []
    for name in _closure(packages, missing):
        for entry in metadata.distribution(name).files or ():
            top = entry.parts[0]
            if top not in {"..", "__pycache__", "/"}:
                path = (
                    Path(str(entry.locate())).parents[len(entry.parts) - 2] if len(entry.parts) > 1 else entry.locate()
                )
                found[Path(str(path))] = None
    python = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    there = sorted(path for path in found if path.exists())
    return Libraries(python, Path(sys.base_prefix).resolve(), tuple(there), tuple(missing))


def _closure(packages: Iterable[str], missing: list[str]) -> list[str]:
    waiting = list(packages)
    seen: dict[str, None] = {}
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        try:
            needed = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            if name in {package.lower() for package in packages}:
                missing.append(name)
            continue
        seen[name] = None
        for line in needed:
            match = _NAME.match(line)
            if match is not None and "extra ==" not in line:
                waiting.append(match[0])
    return list(seen)


def for_everybody(libraries: Libraries) -> Libraries:
    """Returns the same libraries where every user of this machine can read them: as they are, or a copy that is kept.

    An interpreter below a home folder is out of reach for the users of sandboxes.

    Raises:
        OSError: no copy can be made.
    """
    if all(reachable(path) for path in (libraries.python, libraries.prefix, *libraries.packages)):
        return libraries
    place = _copied(libraries)
    python = place / "python"
    packages = [place / "packages" / path.name for path in libraries.packages]
    relative = libraries.python.relative_to(libraries.prefix)
    return Libraries(python / relative, python, tuple(packages), libraries.missing)


def reachable(path: Path) -> bool:
    """True when others than root and the owner come to it; whole packages are installed with the same rights."""
    for part in (path, *path.parents):
        with suppress(OSError):
            if part.stat().st_mode & 0o001 or (not part.is_dir() and part.stat().st_mode & 0o004):
                continue
        return False
    return True


def _copied(libraries: Libraries) -> Path:
    digest = hashlib.sha256()
    for path in (libraries.python, libraries.prefix, *libraries.packages):
        digest.update(f"{path} {path.stat().st_mtime_ns}\n".encode())
    name = digest.hexdigest()[:16]
    for folder in (*_CACHES, tempfile.gettempdir()):
        parent = Path(folder)
        if not parent.is_dir() or not os.access(parent, os.W_OK) or not reachable(parent):
            continue
        home = parent / f"turnwire-interpreter-{os.geteuid()}"
        place = home / name
        home.mkdir(mode=0o755, exist_ok=True)
        # In a folder for everybody somebody else may have been there first.
        if home.is_symlink() or home.stat().st_uid != os.geteuid() or home.stat().st_mode & 0o022:
            continue
        home.chmod(0o755)
        if not place.is_dir():
            _copy(libraries, home, place)
        return place
    raise OSError(
        f"the users of sandboxes cannot read {libraries.prefix} or the packages beside it, and there is no folder for a"
        " copy: install Python where all can read it"
    )


def _copy(libraries: Libraries, home: Path, place: Path) -> None:
    """Makes the copy under another name first: one that was cut is never used."""
    with tempfile.TemporaryDirectory(dir=home, prefix="making-") as folder:
        making = Path(folder)
        making.chmod(0o755)
        ignored = shutil.ignore_patterns("site-packages", "test", "tests_*", "idlelib", "ensurepip", "*.a")
        for part in ("bin", "lib"):
            _link_tree(libraries.prefix / part, making / "python" / part, ignored)
        (making / "packages").mkdir()
        for path in libraries.packages:
            _link_tree(path, making / "packages" / path.name, None)
        with suppress(OSError):  # another process has made it meanwhile
            making.rename(place)
            making.mkdir()


def _link_tree(source: Path, target: Path, ignored: object) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=ignored, copy_function=_link)  # type: ignore[arg-type] - as it made it
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> object:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return shutil.copy2(source, target, follow_symlinks=False)
    return target


def interior(folder: Path) -> Path:
    """Puts what runs inside sandboxes below a folder, where the sandbox can read it; returns that folder."""
    source = Path(__file__).with_name("interior")
    root = folder / "interior"
    target = root / "turnwire" / "sandbox_runner" / "interior"
    target.mkdir(parents=True)
    for file in sorted(source.glob("*.py")):
        shutil.copyfile(file, target / file.name)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def names(paths: Sequence[Path]) -> list[str]:
    """Returns paths as text."""
    return [str(path) for path in paths]
