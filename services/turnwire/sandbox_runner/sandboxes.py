"""The sandboxes that are open, those that wait warm, and the end of those that nobody uses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import structlog

from turnwire.errors import NotFound, Overloaded, Unavailable
from turnwire.ids import new_id
from turnwire.runtime.failpoints import Failpoint
from turnwire.sandbox_runner.cage import Broken, Cage
from turnwire.sandbox_runner.engines.port import EngineUnusable
from turnwire.sandbox_runner.pieces import Finished, Returned

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from turnwire.runtime.settings import SandboxSettings
    from turnwire.sandbox_runner.engines.port import Engine, Site
    from turnwire.sandbox_runner.pieces import Piece

_log = structlog.get_logger(__name__)

_SERVICE = "sandbox_runner"
_BEGUN = Failpoint("sandbox_runner.cell_begun")
_ENDED = Failpoint("sandbox_runner.cell_ended")
Key = tuple[str, str]
"""Tenant and id."""


class Started:
    """What a run finds: whether variables, or files too, are gone since the last one."""

    __slots__ = ("restarted", "workspace_lost")

    def __init__(self, *, restarted: bool, workspace_lost: bool) -> None:
        """`workspace_lost` goes with `restarted`."""
        self.restarted = restarted
        self.workspace_lost = workspace_lost


class Sandbox:
    """The sandbox of a session; its cage is replaced when it has ended."""

    def __init__(self, cage: Cage) -> None:
        """Takes a cage that nobody has used."""
        self.cage = cage
        self.turn = asyncio.Lock()
        """Held by the run or the writing that is going on."""
        self.instance_id = new_id("box")
        """Another one for each cage."""
        self.fresh = True
        """No code has run in its cage."""
        self.used = time.monotonic()
        self.restarted = False
        """Its variables are gone since the last run."""
        self.lost = False
        """Its files are gone as well."""
        self.closed = False


class Sandboxes:
    """All sandboxes of a runner."""

    def __init__(self, settings: SandboxSettings, site: Site, engine: Engine, warm: Sequence[Cage]) -> None:
        """`warm` are those that wait already: the one that the engine was tried with."""
        self._settings = settings
        self._site = site
        self._engine = engine
        self._open: dict[Key, Sandbox] = {}
        self._opening: dict[Key, asyncio.Task[Sandbox]] = {}
        self._warm = list(warm)
        self._background: set[asyncio.Task[None]] = set()
        self._filling = asyncio.Lock()
        self._closed = False
        self._returned = Returned(settings.output_bytes, settings.returned_bytes, settings.returned_files)

    @property
    def engine(self) -> str:
        """The name of the engine."""
        return self._engine.name

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def start(self) -> None:
        """Begins to warm sandboxes and to close those that nobody uses."""
        for cage in self._warm:
            self._spawn(self._warm_up(cage))
        self._spawn(self._close_idle())

    async def open(self, key: Key) -> Sandbox:
        """Opens a sandbox, or finds it open; one that has ended, and is not in use, is opened anew.

        Raises:
            Overloaded: there are as many as there may be.
            Unavailable: none can be started now.
        """
        found = self._open.get(key)
        if found is not None:
            found.used = time.monotonic()
            if not found.turn.locked():
                async with found.turn:
                    await self._renew(key, found)
            return found
        opening = self._opening.get(key)
        if opening is not None:
            return await asyncio.shield(opening)
        if len(self._open) + len(self._opening) >= self._settings.max_sandboxes:
            raise Overloaded(_SERVICE, limit=f"{self._settings.max_sandboxes} sandboxes", retry_after=30.0)
        opening = self._opening[key] = asyncio.create_task(self._opened(key))
        return await asyncio.shield(opening)

    async def write(self, key: Key, path: str, offset: int, data: bytes, *, last: bool) -> str:
        """Writes a piece of a file; returns what is wrong with it, or nothing.

        Raises:
            NotFound: the sandbox is not open.
            Unavailable: it has ended, and no other can be started now.
        """
        sandbox = self._found(key)
        async with sandbox.turn:
            await self._renew(key, sandbox)
            try:
                problem = await sandbox.cage.write(path, offset, data, last=last)
            except Broken:
                raise Unavailable(_SERVICE, detail="the sandbox ended while files were written") from None
            finally:
                sandbox.used = time.monotonic()
        return problem

    async def run(self, key: Key, code: str, call_id: str, seconds: float) -> AsyncGenerator[Started | Piece]:
        """Runs code when its turn comes: what it finds, pieces as they come, and last how it ended.

        Raises:
            NotFound: the sandbox is not open.
            Unavailable: it has ended, and no other can be started now.
        """
        sandbox = self._found(key)
        async with sandbox.turn:
            await self._renew(key, sandbox)
            yield Started(restarted=sandbox.restarted, workspace_lost=sandbox.lost)
            sandbox.restarted = sandbox.lost = sandbox.fresh = False
            finished = False
            await _BEGUN.reached()
            pieces = sandbox.cage.run(code, call_id, seconds, self._returned)
            try:
                async for piece in pieces:
                    if isinstance(piece, Finished):
                        await _ENDED.reached()
                        finished = True
                        sandbox.restarted = piece.ending not in {"completed", "raised"}
                    yield piece
            finally:
                sandbox.restarted = sandbox.restarted or not finished
                sandbox.used = time.monotonic()
                await pieces.aclose()

    async def close_one(self, key: Key) -> None:
        """Closes a sandbox, and ends what runs in it."""
        sandbox = self._open.pop(key, None)
        if sandbox is not None:
            sandbox.closed = True
            await sandbox.cage.close()

    async def close(self) -> None:
        """Closes all."""
        self._closed = True
        for task in (*self._background, *self._opening.values()):
            task.cancel()
        await asyncio.gather(*self._background, *self._opening.values(), return_exceptions=True)
        cages = [*self._warm, *(sandbox.cage for sandbox in self._open.values())]
        self._warm.clear()
        self._open.clear()
        await asyncio.gather(*(cage.close() for cage in cages), return_exceptions=True)

    def _found(self, key: Key) -> Sandbox:
        sandbox = self._open.get(key)
        if sandbox is None:
            raise NotFound("sandbox", key[1])
        return sandbox

    async def _opened(self, key: Key) -> Sandbox:
        try:
            cage = await self._cage()
            sandbox = self._open[key] = Sandbox(cage)
            return sandbox
        finally:
            self._opening.pop(key, None)

    async def _renew(self, key: Key, sandbox: Sandbox) -> None:
        """Gives a sandbox that has ended a new cage; the next run is told."""
        if sandbox.closed:
            raise NotFound("sandbox", key[1])
        if await sandbox.cage.answers():
            return
        await sandbox.cage.close()
        sandbox.cage = await self._cage()
        sandbox.instance_id = new_id("box")
        sandbox.restarted = sandbox.lost = sandbox.fresh = True

    async def _cage(self) -> Cage:
        """Returns a cage that nobody has used: one that waits, or a new one."""
        try:
            # One that imports ahead would let its caller wait for that; a new one is there sooner.
            for cage in [cage for cage in self._warm if not cage.busy]:
                self._warm.remove(cage)
                if await cage.answers():
                    return cage
                await cage.close()
            return await self._new()
        finally:
            if not self._closed:
                self._spawn(self._fill())

    async def _new(self) -> Cage:
        try:
            place = await asyncio.to_thread(self._engine.place)
            return await Cage.start(place, self._site.limits)
        except (EngineUnusable, OSError) as error:
            _log.warning("sandbox_not_started", reason=str(error))
            raise Unavailable(_SERVICE, detail=f"no sandbox can be started: {error}") from None

    async def _fill(self) -> None:
        async with self._filling:
            while len(self._warm) < self._settings.warm and not self._closed:
                try:
                    cage = await self._new()
                except Unavailable:
                    return  # said in the log; whoever needs one hears it
                self._warm.append(cage)
                await self._warm_up(cage)

    async def _warm_up(self, cage: Cage) -> None:
        """Imports ahead, while nobody has taken it."""
        # Somebody may have taken it before this began.
        if cage in self._warm:
            with contextlib.suppress(Broken):
                await cage.preload()

    async def _close_idle(self) -> None:
        idle = self._settings.idle_seconds
        while True:
            await asyncio.sleep(min(idle / 4, 30.0))
            for key, sandbox in list(self._open.items()):
                if not sandbox.turn.locked() and time.monotonic() - sandbox.used > idle:
                    _log.info("sandbox_idle", sandbox_id=key[1])
                    await self.close_one(key)

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[arg-type] - coroutines only
        self._background.add(task)
        task.add_done_callback(self._background.discard)
