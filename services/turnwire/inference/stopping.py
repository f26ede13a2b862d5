"""Where an answer ends at one of the caller's stop sequences, found while it is being written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopSequences:
    """Lets text through up to the first stop sequence; what may become one is held back until it is certain."""

    def __init__(self, sequences: Sequence[str]) -> None:
        """Without sequences everything passes."""
        self._sequences = list(sequences)
        self._held = ""
        self.found = False
        """True when a sequence was written: nothing passes after it."""

    def feed(self, text: str) -> str:
        """Takes the next characters and returns those that are certain to be part of the answer."""
        if self.found:
            return ""
        held = self._held + text
        starts = [start for start in (held.find(sequence) for sequence in self._sequences) if start >= 0]
        if starts:
            self.found = True
            self._held = ""
            return held[: min(starts)]
        keep = max((_overlap(held, sequence) for sequence in self._sequences), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """Returns what was held back and became no stop sequence."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, sequence: str) -> int:
    """Returns how many of the last characters of a text are the first ones of a sequence."""
    for length in range(min(len(text), len(sequence) - 1), 0, -1):
        if text.endswith(sequence[:length]):
            return length
    return 0
