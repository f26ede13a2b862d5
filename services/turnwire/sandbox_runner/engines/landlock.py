"""The engine `landlock`: no namespace and no privilege needed; the kernel refuses what is not the sandbox's own."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from turnwire.sandbox_runner import uids
from turnwire.sandbox_runner.engines.port import EngineUnusable, Place, Site
from turnwire.sandbox_runner.engines.walls import confinement, tasks_of
from turnwire.sandbox_runner.home import remove
from turnwire.sandbox_runner.interior import landlock
from turnwire.sandbox_runner.libraries import for_everybody, names

if TYPE_CHECKING:
    from turnwire.sandbox_runner.libraries import Libraries

_SYSTEM = [
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/bin",
    "/sbin",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/fonts",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
]


class Landlock:
    """Starts sandboxes that restrict themselves."""

    name = "landlock"

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._site: Site | None = None
        self._libraries: Libraries | None = None

    def prepare(self, site: Site) -> None:
        version = landlock.abi()
        if version < landlock.NEEDED_ABI:
            raise EngineUnusable(
                f"this kernel offers Landlock version {version}, and {landlock.NEEDED_ABI} is needed (Linux 6.12 with"
                " `landlock` among its security modules)"
            )
        self._site = site
        try:
            self._libraries = for_everybody(site.libraries) if os.geteuid() == 0 else site.libraries
        except OSError as error:
            raise EngineUnusable(str(error)) from None

    def place(self) -> Place:
        site, libraries = self._site, self._libraries
        assert site is not None
        assert libraries is not None
        user = uids.claim()
        folder = site.folder / secrets.token_hex(8)
        workspace, scratch = folder / "workspace", folder / "scratch"
        folder.mkdir(mode=0o711)
        for part in (workspace, scratch):
            part.mkdir(mode=0o700)
            if user is not None:
                os.chown(part, user.number, user.number)
        # The kernel counts by user: a user of its own has none besides.
        others = 0 if user is not None else tasks_of(os.geteuid())
        prefix = [] if libraries.in_system else [str(libraries.prefix / "lib"), str(libraries.prefix / "bin")]
        walls = confinement(
            site,
            user=user.number if user is not None else None,
            own_files=False,
            workspace=str(workspace),
            scratch=[str(scratch)],
            readable=[*_SYSTEM, *prefix, *names(libraries.packages), str(site.interior)],
            listed=names(libraries.folders),
            libraries=names(libraries.folders),
            processes=others + site.limits.processes,
        )
        inside = str(site.interior / "turnwire" / "sandbox_runner" / "interior" / "keeper.py")
        environment = {"PATH": "/usr/bin:/bin"}
        if any(libraries.prefix.glob("lib/libpython*.so*")) and not libraries.in_system:
            environment["LD_LIBRARY_PATH"] = str(libraries.prefix / "lib")

        def release() -> None:
            remove(folder)
            if user is not None:
                user.release()

        command = [str(libraries.python), "-I", "-S", "-B", inside, walls]
        return Place(command, environment, release, private_files=False)
