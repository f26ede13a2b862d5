"""Named places in the code where a test of faults holds a process, to hit it exactly there.

Off unless `TURNWIRE_FAILPOINTS` names the Unix socket of a driver. A process of services then connects to it and says
who it is; at each failpoint it tells and waits until the driver lets it go on. Lines of JSON, both ways:

    process  {"process": "agent", "pid": 123}            once; `all` for several services in one process
    process  {"id": 7, "failpoint": "agent.accepted"}    at each hit; any number wait at once
    driver   {"id": 7}                                   goes on

When the driver ends, everything goes on. A failpoint stands only where code runs on the loop of its service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, ClassVar

import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from google.protobuf.descriptor import ServiceDescriptor

_log = structlog.get_logger(__name__)

VARIABLE = "TURNWIRE_FAILPOINTS"
_names: set[str] = set()
_methods: dict[str, MethodFailpoints] = {}


class Failpoint:
    """A place in the code. A constant of its module: a failpoint lives as long as the process."""

    __slots__ = ("name",)

    armed: ClassVar[bool] = False
    """Whether a driver listens. Hot paths ask this before they call `reached`: a coroutine costs more than an `if`."""
    _driver: ClassVar[_Driver | None] = None

    def __init__(self, name: str) -> None:
        """Declares it.

        Raises:
            ValueError: the name is declared already.
        """
        if name in _names:
            raise ValueError(f"the failpoint {name} is declared twice")
        _names.add(name)
        self.name = name

    async def reached(self) -> None:
        """Returns when the driver says so; at once without one."""
        driver = Failpoint._driver
        if driver is not None:
            await driver.hold(self.name)


class Boundary:
    """Something that a fault can come before or after, as a commit, or a call of another service: `async with` it.

    Nothing is after what has failed.
    """

    __slots__ = ("after", "before")

    def __init__(self, name: str) -> None:
        """Declares `<name>.before` and `<name>.after`."""
        self.before = Failpoint(f"{name}.before")
        self.after = Failpoint(f"{name}.after")

    async def __aenter__(self) -> None:
        """Reaches the one before."""
        await self.before.reached()

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Reaches the one after."""
        if kind is None:
            await self.after.reached()


class MethodFailpoints:
    """Those of an RPC where it is served."""

    __slots__ = ("between", "ended", "first", "received")

    def __init__(self, name: str, *, streams: bool) -> None:
        """Declares `<name>.received` and `.ended`; of a stream also `.first` and `.between`."""
        self.received = Failpoint(f"{name}.received")
        """Its caller is known, nothing was done yet."""
        self.first = Failpoint(f"{name}.first") if streams else None
        """The first message is there, and not sent."""
        self.between = Failpoint(f"{name}.between") if streams else None
        """A further message is there, and not sent."""
        self.ended = Failpoint(f"{name}.ended")
        """It has done all it does; its caller does not know yet."""

    async def response(self, *, first: bool) -> None:
        """Reaches the one before a message of a stream."""
        point = self.first if first else self.between
        if point is not None:
            await point.reached()


def declare_methods(service: ServiceDescriptor, *methods: str) -> None:
    """Declares the failpoints of methods of a service, as `inference.ChatCompletion.received`.

    Whatever serves them reaches them: nothing else has to be done for them.
    """
    part = service.full_name.split(".")[1]
    for method in methods:
        streams = bool(service.methods_by_name[method].server_streaming)
        _methods[f"{service.full_name}/{method}"] = MethodFailpoints(f"{part}.{method}", streams=streams)


def of_method(method: str) -> MethodFailpoints | None:
    """Returns the failpoints of a method by its full name; None where none are declared."""
    return _methods.get(method)


def declared() -> tuple[str, ...]:
    """Returns the names of all failpoints of the modules that are loaded, sorted."""
    return tuple(sorted(_names))


@asynccontextmanager
async def armed(services: Sequence[str], environ: Mapping[str, str]) -> AsyncGenerator[None]:
    """Arms the failpoints of this process, if the environment says so, until the context is left."""
    path = environ.get(VARIABLE)
    if not path or Failpoint.armed:
        yield
        return
    _log.warning(
        "failpoints_armed",
        socket=path,
        meaning="This process stops at places in its code until a test lets it go on. Never set this in production.",
    )
    driver = _Driver(path)
    try:
        await driver.open(services[0] if len(services) == 1 else "all")
        yield
    finally:
        await driver.close()


class _Driver:
    """The connection to the driver."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ids = count(1)
        self._held: dict[int, asyncio.Future[None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, process: str) -> None:
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            self._gone(str(error))
            return
        self._tell({"process": process, "pid": os.getpid()})
        Failpoint._driver = self
        Failpoint.armed = True
        self._reading = asyncio.create_task(self._read(reader), name="failpoints")

    async def hold(self, name: str) -> None:
        hit = next(self._ids)
        # In a thread without a loop this fails, as it should: there a hold would stop what others wait for.
        released = self._held[hit] = asyncio.get_running_loop().create_future()
        try:
            self._tell({"id": hit, "failpoint": name})
            await released
        finally:
            del self._held[hit]

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._let_all_go()
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        detail = "it closed the connection"
        try:
            while line := await reader.readline():
                released = self._held.get(json.loads(line)["id"])
                # Whoever waited may have been cancelled meanwhile.
                if released is not None and not released.done():
                    released.set_result(None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            detail = f"{type(error).__name__}: {error}"
        self._gone(detail)

    def _gone(self, detail: str) -> None:
        self._let_all_go()
        _log.warning("failpoints_driver_gone", socket=self._path, detail=detail)

    def _let_all_go(self) -> None:
        if Failpoint._driver is self:
            Failpoint._driver = None
            Failpoint.armed = False
        for released in self._held.values():
            if not released.done():
                released.set_result(None)

    def _tell(self, message: dict[str, str | int]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")
