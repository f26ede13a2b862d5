"""How long a step is tried while a service is away."""

from __future__ import annotations

import itertools

from turnwire.agent.turn.retrying import MAX_ATTEMPTS, delay_of
from turnwire.errors import Overloaded, Unavailable


def test_a_step_is_tried_for_as_long_as_a_service_takes_to_start():
    away = Unavailable("inference")
    waits = [[delay_of(away, attempt) for attempt in range(1, MAX_ATTEMPTS)] for _ in range(20)]

    assert all(7.5 <= sum(each) <= 10.0 for each in waits)
    assert all(earlier < later for each in waits for earlier, later in itertools.pairwise(each))
    assert 20 == len({sum(each) for each in waits})


def test_what_the_other_side_asks_for_is_waited_and_not_for_ever():
    assert 7.0 <= delay_of(Overloaded("inference", limit="streams", retry_after=7.0), 1) <= 9.1
    assert 30.0 <= delay_of(Overloaded("inference", limit="streams", retry_after=3600.0), 1) <= 39.0
