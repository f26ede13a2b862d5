"""How long to wait before something is tried again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnwire.errors import TurnwireError

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0


def delay_of(error: TurnwireError, attempt: int) -> float:
    """Returns the seconds to wait after an attempt: what the other side asked for, or growing ones, with jitter."""
    delay = error.retry_after if error.retry_after is not None else _FIRST_DELAY * 2 ** (attempt - 1)
    return min(delay, _LONGEST_DELAY) * random.uniform(1.0, 1.3)  # noqa: S311 - jitter, no secret
