"""What is outside of a sandbox: targets that a test makes, and a place where a payload is seen to work."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.sandbox.running import python_environment, readable


@dataclass
class Heard:
    """What came to the listeners of the host."""

    data: list[bytes] = field(default_factory=list[bytes])


class World:
    """Targets of one attack, for payloads that run as one user of the host."""

    def __init__(self, user: int, runner: int) -> None:
        """`user`: who runs the payload, as the host counts. `runner`: a process that is not to be reached."""
        self.user = user
        self.token = f"token-{secrets.token_hex(8)}"
        self.folder = Path(tempfile.mkdtemp(prefix="turnwire-outside-"))
        self.folder.chmod(0o755)
        self.secret = self.folder / "secret.txt"
        self.secret.write_text(self.token)
        self.secret.chmod(0o644)
        self.open_folder = self.folder / "open"
        self.open_folder.mkdir()
        self.open_folder.chmod(0o777)
        self.heard = Heard()
        self._sockets: list[socket.socket] = []
        self.abstract = f"turnwire-test-{self.token}"
        self.tcp = self._listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.udp = self._listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self._listen(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.abstract}")
        self.unix = self.open_folder / "socket"
        self._listen(socket.AF_UNIX, socket.SOCK_DGRAM, str(self.unix))
        self.unix.chmod(0o777)
        self._own(self.secret)
        # Another process of the same user, with something to hide.
        self.victim = subprocess.Popen(
            [*self._as_user(), "sleep", "600"],
            env={"VICTIM_SECRET": self.token, "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
        )
        self.runner = runner
        self.mark = str(secrets.randbelow(10**9) + 10**9)
        """How a process that an attack leaves is known: it sleeps for so many seconds."""
        self.most = 0
        """How many of them were seen at once."""
        self._closed = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def _sample(self) -> None:
        while not self._closed.wait(0.1):
            self.most = max(self.most, len(self.marked()))

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.user, self.user)

    def _as_user(self) -> list[str]:
        """By a program: in a process with threads of gRPC, Python's own way leaves traces in what it starts."""
        if os.geteuid() != 0:
            return []
        return ["setpriv", "--reuid", str(self.user), "--regid", str(self.user), "--clear-groups"]

    def _listen(self, family: int, kind: int, address: Any) -> Any:
        listening = socket.socket(family, kind)
        listening.bind(address)
        self._sockets.append(listening)
        if kind == socket.SOCK_STREAM:
            listening.listen()

        def hear() -> None:
            with suppress(OSError):
                while True:
                    if kind == socket.SOCK_STREAM:
                        peer, _ = listening.accept()
                        with peer:
                            self.heard.data.append(peer.recv(1000))
                    else:
                        self.heard.data.append(listening.recv(1000))

        threading.Thread(target=hear, daemon=True).start()
        return listening.getsockname()

    def run(self, code: str, seconds: float) -> str:
        """Runs a payload outside of any sandbox, as its user; what it said until it ended or was ended."""
        workspace = self.folder / "workspace"
        workspace.mkdir(exist_ok=True)
        self._own(workspace)
        # So that `/proc/<parent>` is of a process of the same user, as it is in a sandbox.
        wrapper = (
            "import subprocess, sys; raise SystemExit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
        )
        output = tempfile.TemporaryFile()  # noqa: SIM115 - read and closed below
        process = subprocess.Popen(
            [*self._as_user(), str(readable().python), "-c", wrapper, code],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=workspace,
            env=python_environment() | {"OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        ended = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            ended = "STILL RUNNING"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        with output:
            output.seek(0)
            return output.read().decode(errors="replace") + ended

    def marked(self) -> list[int]:
        """Returns the processes of the host that bear the mark and live."""
        found: list[int] = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError):
                    words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    if self.mark.encode() in words:
                        found.append(int(name))
        return found

    def victim_files(self) -> str:
        """Returns how many files the other process may open."""
        lines = Path(f"/proc/{self.victim.pid}/limits").read_text().splitlines()
        return next(line.split()[3] for line in lines if line.startswith("Max open files"))

    def close(self) -> None:
        """Removes all of it."""
        self._closed.set()
        self._sampler.join()
        for process in self.marked():
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        self.victim.kill()
        self.victim.wait()
        for listening in self._sockets:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        subprocess.run(["chmod", "-R", "u+rwX", str(self.folder)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
