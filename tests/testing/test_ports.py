"""`turnwire.testing.ports`: processes of tests at the same time never get a port of each other."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from turnwire.runtime.settings import PORTS
from turnwire.runtime.settings.models import ListenSettings
from turnwire.testing.ports import RANGES, PortRange, free_port, free_port_offset, ports_of, taken_range

if TYPE_CHECKING:
    from collections.abc import Generator

_TAKE = """
import sys
from turnwire.testing.ports import taken_range
taken = taken_range()
print(taken.number, flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process() -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """Gives a process that has taken a range, and the number of that."""
    words = [sys.executable, "-c", _TAKE]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def _all_ports(each: PortRange) -> list[int]:
    return [*each.ports(), *(port for offset in each.offsets() for port in ports_of(PORTS, offset))]


def test_no_port_is_in_two_ranges_nor_twice_in_one():
    ports = [port for number in range(RANGES) for port in _all_ports(PortRange(number, None))]

    assert len(ports) == len(set(ports))


def test_every_offset_can_be_set_and_no_port_is_one_that_the_kernel_gives_to_clients():
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first, last = map(int, file.read().split())
    for number in range(RANGES):
        each = PortRange(number, None)

        assert [] == [port for port in _all_ports(each) if first <= port <= last or port > 65_535]
        assert each.offsets() == [ListenSettings(port_offset=offset).port_offset for offset in each.offsets()]


def test_processes_at_the_same_time_have_different_ranges():
    with another_process() as (_, first), another_process() as (_, second):
        mine = taken_range()
        assert mine.held is not None
        with mine.held:
            assert 3 == len({first, second, mine.number})


def test_the_range_of_a_killed_process_is_taken_again():
    with another_process() as (process, number):
        process.kill()
        process.wait()
        with ExitStack() as stack:
            taken: list[int] = []
            while (each := taken_range()).held is not None:
                stack.enter_context(each.held)
                taken.append(each.number)

    assert number in taken


def test_where_all_ranges_are_taken_one_is_shared():
    with ExitStack() as stack:
        while (each := taken_range()).held is not None:
            stack.enter_context(each.held)

        assert each.offset(["agent"]) in each.offsets()


def test_what_was_chosen_is_not_chosen_again_at_once_though_nobody_has_bound_it():
    assert 6 == len({free_port_offset(["agent"]) for _ in range(6)})
    assert 6 == len({free_port() for _ in range(6)})


def test_an_offset_with_a_port_that_is_taken_is_passed_over():
    with ExitStack() as stack:
        each = taken_range()
        first, second, third, *_ = each.offsets()
        if each.held is not None:
            stack.enter_context(each.held)
        for offset, extra in ((first, 200), (second, 0)):
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", PORTS["memory"] + offset + extra))

        assert third == each.offset(["agent", "memory"])
