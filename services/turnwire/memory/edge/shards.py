"""The shards of Qdrant's embedded engine below one folder, for a process that does nothing else.

Every call of the engine holds the interpreter until it is done (seen with 0.9.0: a search of 60,000 points 4 ms, a
flush 266 ms, building an index minutes), so that a thread beside an event loop would not help it.

A bank is a folder `<uid>.<number>`. The engine searches without an index until there are many points without one.
Then a further process builds it on a copy, what is written meanwhile is written into both, and the copy takes the
bank's place under the next number: the highest number is the bank, whatever a crash has left beside it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import qdrant_edge as engine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_OPEN = 32
"""So many banks are open at once; the least used one is closed for another."""
_LOCKED_SECONDS = 20.0
"""A process that was killed may hold a bank a moment longer than its successor likes."""
_POINTS = 500
"""Points of one write."""
_NUMBERED, _MAKING, _COPY = ".", ".making", ".copy"


@dataclass(slots=True)
class _Indexing:
    """An index that is being built on a copy."""

    uid: str
    copy: Path
    process: subprocess.Popen[bytes]
    written: list[engine.UpdateOperation] = field(default_factory=list["engine.UpdateOperation"])
    """What was written since the copy was made."""


class Shards:
    """Banks by their uid."""

    def __init__(self, folder: Path, *, index_after: int) -> None:
        """Begins to build an index when `index_after` points have none."""
        self._folder = folder
        self._index_after = index_after
        self._open: OrderedDict[str, engine.EdgeShard] = OrderedDict()
        self._indexing: _Indexing | None = None
        self._full: OrderedDict[str, None] = OrderedDict()
        """Banks with many points without an index."""
        self._not_before: dict[str, int] = {}
        """Banks whose index could not be built, and from how many points on it is tried again."""
        self._sweep()

    @property
    def busy(self) -> bool:
        """True while `work` has something to look after."""
        return self._indexing is not None or bool(self._full)

    def create(self, uid: str, dimension: int) -> None:
        """Makes a bank; one that is there stays as it is."""
        if self._current(uid) is not None:
            return
        making = self._folder / f"{uid}{_MAKING}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        vectors = engine.EdgeVectorParams(size=dimension, distance=engine.Distance.Cosine)
        # The engine counts in kilobytes, and builds none for a part of a bank that is smaller.
        least = engine.EdgeOptimizersConfig(indexing_threshold=max(1, self._index_after * dimension * 4 // 2 // 1024))
        shard = engine.EdgeShard.create(str(making), engine.EdgeConfig(vectors=vectors, optimizers=least))
        for key in ("revision", "labels"):
            shard.update(engine.UpdateOperation.create_field_index(key, engine.PayloadSchemaType.Keyword))
        shard.flush()
        shard.close()
        making.rename(self._folder / f"{uid}{_NUMBERED}1")

    def drop(self, uid: str) -> None:
        """Removes a bank."""
        if self._indexing is not None and self._indexing.uid == uid:
            self._give_up()
        self._full.pop(uid, None)
        shard = self._open.pop(uid, None)
        if shard is not None:
            shard.close()
        for path in self._numbered(uid):
            shutil.rmtree(path)

    def put(self, uid: str, revision: str, labels: Sequence[str], vectors: Sequence[Sequence[float]]) -> None:
        """Adds the chunks of an entry; they are on the disk when this returns."""
        shard = self._shard(uid)
        for start in range(0, len(vectors), _POINTS):
            points = [
                engine.Point(
                    uuid.uuid5(uuid.NAMESPACE_OID, f"{revision} {ordinal}"),
                    list(vectors[ordinal]),
                    {"revision": revision, "ordinal": ordinal, "labels": list(labels)},
                )
                for ordinal in range(start, min(start + _POINTS, len(vectors)))
            ]
            self._write(uid, shard, engine.UpdateOperation.upsert_points(points))
        shard.flush()
        info = shard.info()
        at_work = self._indexing is not None and self._indexing.uid == uid
        if self._is_bare(info) and not at_work and info.points_count >= self._not_before.get(uid, 0):
            self._full[uid] = None

    def remove(self, uid: str, revisions: Sequence[str]) -> None:
        """Removes entries."""
        if self._current(uid) is None:
            return
        shard = self._shard(uid)
        chosen = engine.Filter(must=[engine.FieldCondition("revision", match=engine.MatchAny(list(revisions)))])
        self._write(uid, shard, engine.UpdateOperation.delete_points_by_filter(chosen))
        shard.flush()

    def search(
        self, uid: str, vector: Sequence[float], limit: int, labels: Sequence[str], hidden: Sequence[str]
    ) -> list[tuple[str, int, float]]:
        """Returns (revision, number of the chunk, cosine), best first."""
        if self._current(uid) is None:
            return []
        wanted = [engine.FieldCondition("labels", match=engine.MatchValue(label)) for label in labels]
        unwanted = [engine.FieldCondition("revision", match=engine.MatchAny(list(hidden)))] if hidden else None
        request = engine.SearchRequest(
            engine.Query.Nearest(list(vector)),
            limit,
            filter=engine.Filter(must=[*wanted] or None, must_not=[*unwanted] if unwanted else None),
            with_payload=True,
        )
        found: list[tuple[str, int, float]] = []
        for point in self._shard(uid).search(request):
            payload: dict[str, Any] = point.payload or {}
            found.append((payload["revision"], payload["ordinal"], point.score))
        return found

    def work(self) -> None:
        """Carries the building of indexes on; returns soon."""
        indexing = self._indexing
        if indexing is not None and indexing.process.poll() is not None:
            self._indexing = None
            if indexing.process.returncode == 0:
                self._take_over(indexing)
            else:
                shutil.rmtree(indexing.copy, ignore_errors=True)
            info = self._shard(indexing.uid).info()
            if self._is_bare(info):
                # Trying again with each write would copy the bank for nothing.
                self._not_before[indexing.uid] = 2 * info.points_count
        if self._indexing is None and self._full:
            uid, _ = self._full.popitem(last=False)
            self._begin(uid)

    def close(self) -> None:
        """Writes everything to the disk and closes it."""
        self._give_up()
        for shard in self._open.values():
            shard.flush()
            shard.close()
        self._open.clear()

    def _is_bare(self, info: engine.ShardInfo) -> bool:
        return info.points_count - info.indexed_vectors_count >= self._index_after

    def _write(self, uid: str, shard: engine.EdgeShard, operation: engine.UpdateOperation) -> None:
        shard.update(operation)
        if self._indexing is not None and self._indexing.uid == uid:
            self._indexing.written.append(operation)

    def _begin(self, uid: str) -> None:
        current = self._current(uid)
        if current is None:
            return
        self._shard(uid).flush()
        copy = self._folder / f"{uid}{_COPY}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(current, copy)
        command = [sys.executable, "-m", "turnwire.memory.edge.worker", "--index", str(copy)]
        self._indexing = _Indexing(uid, copy, subprocess.Popen(command, stdin=subprocess.DEVNULL))

    def _take_over(self, indexing: _Indexing) -> None:
        successor = _loaded(indexing.copy)
        for operation in indexing.written:
            successor.update(operation)
        successor.flush()
        successor.close()
        current = self._current(indexing.uid)
        assert current is not None
        shard = self._open.pop(indexing.uid, None)
        if shard is not None:
            shard.close()
        indexing.copy.rename(self._folder / f"{indexing.uid}{_NUMBERED}{_number(current) + 1}")
        shutil.rmtree(current)

    def _give_up(self) -> None:
        if self._indexing is not None:
            self._indexing.process.kill()
            self._indexing.process.wait()
            shutil.rmtree(self._indexing.copy, ignore_errors=True)
            self._indexing = None

    def _shard(self, uid: str) -> engine.EdgeShard:
        shard = self._open.get(uid)
        if shard is None:
            current = self._current(uid)
            if current is None:
                raise FileNotFoundError(f"there is no bank {uid} below {self._folder}")
            while len(self._open) >= _OPEN:
                _, oldest = self._open.popitem(last=False)
                oldest.flush()
                oldest.close()
            shard = self._open[uid] = _loaded(current)
        self._open.move_to_end(uid)
        return shard

    def _current(self, uid: str) -> Path | None:
        return max(self._numbered(uid), key=_number, default=None)

    def _numbered(self, uid: str) -> list[Path]:
        return [path for path in self._folder.glob(f"{uid}{_NUMBERED}*") if path.suffix[1:].isdigit()]

    def _sweep(self) -> None:
        """Removes what a crash has left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            uid = path.name.partition(_NUMBERED)[0]
            if path.suffix in {_MAKING, _COPY} or path != self._current(uid):
                shutil.rmtree(path)


def build_index(path: Path) -> None:
    """Builds the index of a closed shard; takes its time."""
    shard = _loaded(path)
    shard.optimize()
    shard.flush()
    shard.close()


def _loaded(path: Path) -> engine.EdgeShard:
    until = time.monotonic() + _LOCKED_SECONDS
    while True:
        try:
            return engine.EdgeShard.load(str(path))
        except Exception as error:
            # The engine raises bare exceptions; only their text tells that another process has it open.
            if "WouldBlock" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.05)


def _number(path: Path) -> int:
    return int(path.suffix[1:])
