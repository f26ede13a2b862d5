"""Ports that no other process of tests is given: each process has a range of its own, for as long as it lives.

A port that is free when it is chosen may be taken before it is bound: services are bound late, by other processes, and
again after they were killed. So what is chosen is a range, and a socket that is bound at its beginning holds it.
"""

from __future__ import annotations

import itertools
import random
import socket
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from turnwire.runtime.settings import PORTS
from turnwire.runtime.settings.models import HEALTH_OFFSET, METRICS_OFFSET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FIRST_OFFSET = 11_000
"""From here on, ports are above those that the kernel gives to clients; the greatest offset is 15,000."""
_BEGIN = PORTS["agent"] - 1
"""The port below those of the services, which the socket that holds a range is bound to."""
_PLACES = 10
_PLACE = 10
"""The ports of all services are within ten, and again within ten for health and for metrics."""
_RANGE = 300
RANGES = 14


@dataclass
class PortRange:
    """Offsets and ports that go round: what was given last is given last again."""

    number: int
    held: socket.socket | None
    """Holds it as long as it is open; None for a range that others may use as well."""
    _offsets: Iterator[int] = field(init=False)
    _ports: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self._offsets = itertools.cycle(self.offsets())
        self._ports = itertools.cycle(self.ports())

    def offsets(self) -> list[int]:
        """Returns the offsets of this range."""
        first = _FIRST_OFFSET + self.number * _RANGE
        return [first + place * _PLACE for place in range(_PLACES)]

    def ports(self) -> list[int]:
        """Returns the ports of this range that no service has at any of its offsets."""
        lasts = [_BEGIN + offset + _PLACE - 1 for offset in self.offsets()]
        return [last + extra for extra in (0, HEALTH_OFFSET, METRICS_OFFSET) for last in lasts]

    def offset(self, services: Iterable[str]) -> int:
        """Returns an offset at which all ports of the services are free."""
        names = list(services)
        for offset in itertools.islice(self._offsets, _PLACES):
            if all(_is_free(port) for port in ports_of(names, offset)):
                return offset
        raise RuntimeError(f"at none of {_PLACES} offsets are the ports of {', '.join(names)} free")

    def port(self) -> int:
        """Returns a port that is free."""
        for port in itertools.islice(self._ports, 3 * _PLACES):
            if _is_free(port):
                return port
        raise RuntimeError(f"none of {3 * _PLACES} ports is free")


def free_port_offset(services: Iterable[str]) -> int:
    """Returns an offset at which all ports of the services are free, and left alone by other processes of tests."""
    return _own_range().offset(services)


def free_port() -> int:
    """Returns a port that is free, and left alone by other processes of tests."""
    return _own_range().port()


def ports_of(services: Iterable[str], offset: int) -> list[int]:
    """Returns the ports that services take at an offset."""
    return [PORTS[name] + offset + extra for name in services for extra in (0, HEALTH_OFFSET, METRICS_OFFSET)]


def taken_range() -> PortRange:
    """Takes a range that no process has; where all are taken, shares one with the processes that have it."""
    for number in range(RANGES):
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", _BEGIN + _FIRST_OFFSET + number * _RANGE))
        except OSError:
            held.close()
        else:
            return PortRange(number, held)
    return PortRange(random.randrange(RANGES), None)  # noqa: S311 - no secret


@cache
def _own_range() -> PortRange:
    return taken_range()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
