"""Whether an engine really isolates here: a sandbox is started, and tries to get out."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from turnwire.sandbox_runner.cage import Cage
from turnwire.sandbox_runner.engines.port import EngineUnusable
from turnwire.sandbox_runner.pieces import Finished, Returned

if TYPE_CHECKING:
    from turnwire.sandbox_runner.engines.port import Place, Site

_SECONDS = 20.0

_PROGRAM = """
import ctypes, errno, json, os, socket
found = {"user": os.getuid(), "groups": os.getgroups(), "sum": sum(range(10))}
def reached(name, attempt):
    try:
        attempt()
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, "?")
    else:
        found[name] = "reached"
reached("read", lambda: open(%(canary)r).read())
reached("write", lambda: open(%(canary)r + ".written", "w").write("x"))
reached("socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
reached("signal", lambda: os.kill(%(pid)d, 0))
libc = ctypes.CDLL(None, use_errno=True)
found["unshare"] = libc.unshare(0x10000000)
found["own_file"] = open("probe.txt", "w").write("x")
os.unlink("probe.txt")
print(json.dumps(found))
"""


async def check(place: Place, site: Site) -> Cage:
    """Starts a sandbox in a place, has it try to get out, and returns it when it could not.

    Raises:
        EngineUnusable: it does not come up, or it got out.
    """
    canary = site.folder / f"canary-{secrets.token_hex(4)}"
    canary.write_text("a file of the host that everybody may read")
    canary.chmod(0o644)
    cage = await Cage.start(place, site.limits)
    try:
        text, finished = "", Finished("died")
        program = _PROGRAM % {"canary": str(canary), "pid": os.getpid()}
        async for piece in cage.run(program, "probe", _SECONDS, Returned(65536, 65536, 4)):
            if isinstance(piece, Finished):
                finished = piece
            else:
                text += getattr(piece, "text", "")
        _judge(text, finished, Path(f"{canary}.written"))
        cage.cells = 0
    except BaseException:
        await cage.close()
        raise
    finally:
        canary.unlink()
    return cage


def _judge(text: str, finished: Finished, written: Path) -> None:
    if finished.ending != "completed":
        raise EngineUnusable(f"code does not run in it: {finished.error or text}"[:500])
    found = json.loads(text)
    out = [name for name in ("read", "write", "socket", "signal") if found[name] == "reached"]
    if found["unshare"] == 0:
        out.append("unshare")
    if found["user"] == 0 or 0 in found["groups"]:
        out.append("root")
    if written.exists():
        written.unlink()
        out.append("write")
    if out:
        raise EngineUnusable(f"code got out of it ({', '.join(out)})")
