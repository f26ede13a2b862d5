"""`inline::qdrant-edge`: vector banks on Qdrant's own engine, embedded, in a process beside the service.

One folder a bank, below `memory-<provider_id>` in the data directory. What is put is flushed before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import ProviderError, ProviderUnavailable
from turnwire.memory.banks.port import Hit
from turnwire.memory.edge.worker import LENGTHS, floats, packed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from turnwire.memory.banks.port import Entry, Kind, Place, Question, State

_log = structlog.get_logger(__name__)
_CLOSE_SECONDS = 20.0
_FULL_DISK = "(os error 28)"
"""How the engine ends what it says of ENOSPC."""


class QdrantEdgeProvider:
    """Asks the process that holds the shards."""

    kinds: frozenset[Kind] = frozenset({"vector"})

    class Config(BaseModel):
        """The configuration of the provider."""

        model_config = ConfigDict(extra="forbid")

        index_after: int = Field(default=20_000, ge=100)
        """So many chunks are searched without an index; then one is built, in the background."""
        answer_seconds: float = Field(default=120.0, gt=0)
        """The process is given up when it takes longer for one request."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Starts nothing yet."""
        self.provider_id = provider_id
        self._config = config
        self._folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._requests: asyncio.Queue[tuple[bytes, asyncio.Future[Any]]] = asyncio.Queue()
        self._talking: asyncio.Task[None] | None = None
        self._failure = ""

    async def start(self, data_dir: Path) -> None:
        """Starts the process."""
        self._folder = data_dir / f"memory-{self.provider_id}"
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        self._talking = asyncio.create_task(self._talk(), name=f"{self.provider_id} shards")
        await self._started()

    async def close(self) -> None:
        """Lets the process write everything to the disk, and waits for its end."""
        if self._talking is not None:
            self._talking.cancel()
            await asyncio.gather(self._talking, return_exceptions=True)
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _CLOSE_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        while not self._requests.empty():
            self._settle(self._requests.get_nowait()[1], error=self._away("it was closed"))

    def state(self) -> tuple[State.ValueType, str]:
        """Unavailable while its process cannot be started."""
        if self._failure:
            return inspect_service_pb2.Provider.STATE_UNAVAILABLE, self._failure
        return inspect_service_pb2.Provider.STATE_READY, ""

    async def create(self, place: Place) -> None:
        """Makes the folder of a bank."""
        await self._ask({"do": "create", "uid": place.uid, "dimension": place.dimension})

    async def drop(self, place: Place) -> None:
        """Removes the folder of a bank."""
        await self._ask({"do": "drop", "uid": place.uid})

    async def put(self, place: Place, entry: Entry) -> None:
        """Adds the chunks of an entry and flushes them."""
        request = {
            "do": "put",
            "uid": place.uid,
            "dimension": place.dimension,
            "revision": entry.revision,
            "labels": entry.labels,
        }
        await self._ask(request, floats(entry.vectors))

    async def remove(self, place: Place, revisions: Sequence[str]) -> None:
        """Removes entries."""
        await self._ask({"do": "remove", "uid": place.uid, "revisions": list(revisions)})

    async def search(self, place: Place, question: Question) -> list[Hit]:
        """Returns the chunks whose vectors are nearest."""
        request = {
            "do": "search",
            "uid": place.uid,
            "dimension": place.dimension,
            "limit": question.limit,
            "labels": question.labels,
            "hidden": question.hidden,
        }
        found = await self._ask(request, floats([question.vector]))
        return [Hit(revision, ordinal, score) for revision, ordinal, score in found]

    async def _ask(self, request: dict[str, Any], body: bytes = b"") -> Any:
        if self._talking is None or self._talking.done():
            raise self._away("it is not started")
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((packed(request, body), answered))
        return await answered

    async def _talk(self) -> None:
        """One request after the other; a caller that leaves does not bring the answers out of step."""
        while True:
            message, answered = await self._requests.get()
            if answered.cancelled():
                continue
            try:
                async with asyncio.timeout(self._config.answer_seconds):
                    answer = await self._exchanged(message)
            except TimeoutError:
                self._stop()
                self._settle(answered, error=self._away("its process did not answer in time and was ended"))
            except (OSError, EOFError) as error:
                self._stop()
                self._settle(answered, error=self._away(f"its process has ended ({type(error).__name__})"))
            except asyncio.CancelledError:
                self._settle(answered, error=self._away("it was closed"))
                raise
            else:
                self._settle(answered, answer)

    async def _exchanged(self, message: bytes) -> dict[str, Any]:
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(message)
        await process.stdin.drain()
        head_length, _ = LENGTHS.unpack(await process.stdout.readexactly(LENGTHS.size))
        answer: dict[str, Any] = json.loads(await process.stdout.readexactly(head_length))
        return answer

    async def _started(self) -> asyncio.subprocess.Process:
        process = self._process
        if process is not None and process.returncode is None:
            return process
        assert self._folder is not None
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "turnwire.memory.edge.worker",
                str(self._folder),
                str(self._config.index_after),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(),
            )
        except OSError as error:
            self._failure = f"its process cannot be started: {error}"
            raise
        self._failure = ""
        _log.info("bank_process_started", provider_id=self.provider_id, pid=process.pid)
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()

    def _settle(
        self, answered: asyncio.Future[Any], answer: dict[str, Any] | None = None, error: Exception | None = None
    ) -> None:
        if answered.done():
            return
        told = (answer or {}).get("error")
        if error is not None:
            answered.set_exception(error)
        elif told is not None and _FULL_DISK in told:
            answered.set_exception(self._away(f"the disk of its banks is full ({told})"))
        elif told is not None:
            answered.set_exception(ProviderError(self.provider_id, str(told)))
        else:
            answered.set_result((answer or {}).get("found"))

    def _away(self, why: str) -> ProviderUnavailable:
        return ProviderUnavailable(self.provider_id, why)


def _environment() -> dict[str, str]:
    """What Python needs to find the same modules; no secrets of the service."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ
    }
    return kept | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
