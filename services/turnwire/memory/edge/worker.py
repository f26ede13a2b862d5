"""The process that holds the shards of one provider: requests on stdin, answers on stdout, until stdin ends.

A message is two lengths, a JSON object, and bytes (vectors, as 32-bit floats one after the other).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnwire.memory.edge.shards import Shards, build_index

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTHS = struct.Struct("<II")
_PR_SET_PDEATHSIG = 1
_WORK_SECONDS = 0.2


def packed(fields: dict[str, Any], body: bytes = b"") -> bytes:
    """Returns a message."""
    head = json.dumps(fields, ensure_ascii=False).encode()
    return LENGTHS.pack(len(head), len(body)) + head + body


def floats(vectors: Sequence[Sequence[float]]) -> bytes:
    """Returns vectors as bytes."""
    flat = array("f")
    for vector in vectors:
        flat.extend(vector)
    return flat.tobytes()


def _vectors(body: bytes, dimension: int) -> list[list[float]]:
    flat = array("f")
    flat.frombytes(body)
    return [flat[start : start + dimension].tolist() for start in range(0, len(flat), dimension)]


def main(arguments: Sequence[str]) -> int:
    """Serves the folder that is named; with `--index FOLDER` builds an index and ends."""
    # Whoever started it is of no use without it, nor it without them: the next process wants the folder.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if arguments[0] == "--index":
        os.nice(10)
        build_index(Path(arguments[1]))
        return 0
    shards = Shards(Path(arguments[0]), index_after=int(arguments[1]))
    try:
        worked = [0.0]
        while _served(shards, worked):
            pass
    finally:
        shards.close()
    return 0


def _served(shards: Shards, worked: list[float]) -> bool:
    """Answers one request; false at the end of stdin.

    Works in the silence between two, and from time to time where there is none. `worked` holds when that was last.
    """
    while shards.busy:
        asked = bool(select.select([0], [], [], _WORK_SECONDS)[0])
        if time.monotonic() - worked[0] >= _WORK_SECONDS:
            shards.work()
            worked[0] = time.monotonic()
        if asked:
            break
    lengths = _read(LENGTHS.size)
    if lengths is None:
        return False
    head_length, body_length = LENGTHS.unpack(lengths)
    head, body = _read(head_length), _read(body_length)
    if head is None or body is None:
        return False
    try:
        answer = {"found": _done(shards, json.loads(head), body)}
    except Exception as error:  # the engine's have no other class; the caller hears of it
        answer = {"error": f"{type(error).__name__}: {error}"}
    _write(packed(answer))
    return True


def _done(shards: Shards, request: dict[str, Any], body: bytes) -> Any:
    uid, dimension = request["uid"], request.get("dimension", 0)
    match request["do"]:
        case "create":
            return shards.create(uid, dimension)
        case "drop":
            return shards.drop(uid)
        case "put":
            shards.create(uid, dimension)
            return shards.put(uid, request["revision"], request["labels"], _vectors(body, dimension))
        case "remove":
            return shards.remove(uid, request["revisions"])
        case "search":
            (vector,) = _vectors(body, dimension)
            return shards.search(uid, vector, request["limit"], request["labels"], request["hidden"])
        case unknown:
            raise ValueError(f"unknown request {unknown!r}")


def _read(count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = os.read(0, min(count - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
