"""Processes of this machine as the kernel tells of them: when one started, what it is, who listens on a port."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_LISTENING = "0A"
_LONGEST_COMMAND = 60


def process_start(pid: int) -> str | None:
    """Returns when a process started, in the kernel's ticks; None when there is none."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie has ended.
    return None if fields[0] == "Z" else fields[19]


def described(pid: int) -> str:
    """Returns a process as a person looks for it: `process 123 (python -m http.server)`."""
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    if len(command) > _LONGEST_COMMAND:
        command = command[: _LONGEST_COMMAND - 1] + "…"
    return f"process {pid} ({command})" if command else f"process {pid}"


def port_holder(port: int) -> str:
    """Returns who listens on a TCP port, as far as one may know; empty when nobody is found."""
    found = _listener(port)
    if found is None:
        return ""
    inode, user = found
    for folder in _PROC.glob("[0-9]*"):
        try:
            if any(link.readlink().name == f"socket:[{inode}]" for link in (folder / "fd").iterdir()):
                return described(int(folder.name))
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return f"a process of user {user}"


def _listener(port: int) -> tuple[str, str] | None:
    """Returns (inode of the socket, user id) of the listener on a port."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                return fields[9], fields[7]
    return None
