"""How long a step is tried while a service is away."""

from __future__ import annotations

from turnwire.agent.turn.retrying import MAX_ATTEMPTS
from turnwire.errors import Unavailable
from turnwire.runtime.retrying import delay_of


def test_a_step_is_tried_for_as_long_as_a_service_takes_to_start():
    away = Unavailable("inference")
    assert 7.5 <= sum(delay_of(away, attempt) for attempt in range(1, MAX_ATTEMPTS)) <= 10.0
