"""A clock that is set wrongly is not followed, one that is set right is, a little later."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from turnwire.runtime import identity
from turnwire.runtime.identity import mesh_token, verify_mesh_token
from turnwire.runtime.steady_clock import SteadyClock

HOUR = 3600.0


@dataclass
class _Machine:
    """The clocks of a machine."""

    wall: float = 1_000_000.0
    elapsed: float = 50.0

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.elapsed)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.elapsed += seconds


@pytest.mark.parametrize("step", [-48 * HOUR, -5.0, 5.0, HOUR])
def test_a_step_is_not_followed_before_it_has_lasted(step: float):
    machine = _Machine()
    clock = machine.clock()
    machine.passes(100)
    machine.wall += step
    assert 1_000_100.0 == clock.time()
    machine.passes(599)
    assert 1_000_699.0 == clock.time()
    machine.passes(2)
    assert machine.wall == clock.time()


def test_a_step_that_is_taken_back_was_a_mistake():
    machine = _Machine()
    clock = machine.clock()
    for _ in range(5):
        machine.wall += HOUR
        assert machine.wall - HOUR == clock.time()
        machine.passes(400)
        machine.wall -= HOUR
        assert machine.wall == clock.time()


def test_small_corrections_are_followed_however_many():
    machine = _Machine()
    clock = machine.clock()
    for _ in range(100):
        machine.wall += 1.0
        assert machine.wall == clock.time()


@pytest.mark.parametrize("step", [-48 * HOUR, HOUR])
def test_services_believe_one_another_while_the_clock_of_one_is_wrong(step: float, monkeypatch: pytest.MonkeyPatch):
    machine = _Machine(wall=time.time())
    wrong, right = machine.clock(), SteadyClock()
    machine.wall += step
    monkeypatch.setattr(identity, "_clock", wrong)
    sent = mesh_token("a secret", "agent")
    monkeypatch.setattr(identity, "_clock", right)
    assert "agent" == verify_mesh_token("a secret", sent)
    answered = mesh_token("a secret", "memory")
    monkeypatch.setattr(identity, "_clock", wrong)
    assert "memory" == verify_mesh_token("a secret", answered)
