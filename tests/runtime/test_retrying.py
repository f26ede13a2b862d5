"""How long what has failed in passing is waited for before it is tried again."""

from __future__ import annotations

import itertools

from turnwire.errors import Overloaded, ProviderRateLimited, Unavailable
from turnwire.runtime.retrying import delay_of


def test_attempts_are_apart_by_growing_times_with_jitter():
    away = Unavailable("inference")
    waits = [[delay_of(away, attempt) for attempt in range(1, 5)] for _ in range(20)]

    for attempt, least in enumerate((0.5, 1.0, 2.0, 4.0)):
        assert all(least <= each[attempt] <= least * 1.3 for each in waits)
    assert all(earlier < later for each in waits for earlier, later in itertools.pairwise(each))
    assert 20 == len({sum(each) for each in waits})


def test_what_the_other_side_asks_for_is_waited_and_not_for_ever():
    assert 7.0 <= delay_of(ProviderRateLimited("web", "slow down", retry_after=7.0), 1) <= 9.1
    assert 30.0 <= delay_of(Overloaded("inference", limit="streams", retry_after=3600.0), 1) <= 39.0
