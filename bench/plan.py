"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.script import PACE

Upstream = Literal["openai", "scripted"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the bench."""

    upstream: Upstream = "openai"
    """`openai`: a server process behind `remote::openai`. `scripted`: `inline::scripted` in the inference process."""
    upstream_module: str = "bench.upstream"
    """The module that is run as that server."""
    tokens: int = 256
    repetitions: int = 3
    first_token_samples: int = 200
    """Turns of each target in a repetition, for the time to the first token, one after the other."""
    first_token_tokens: int = 8
    at_once: dict[int, int] = field(default_factory=lambda: {1: 24, 16: 96, 64: 192})
    """Turns that run at once, to how many of them a repetition runs."""
    paced_at_once: int = 32
    store_turns: int = 64
    """Turns whose commits and bytes are counted, for each number at once."""
    idle_seconds: float = 3.0
    warm_up_turns: int = 16

    @property
    def paced_gap(self) -> float:
        """How long after each other paced turns begin, in seconds.

        Not together, and not a token's time apart: tokens of turns in step would come in one batch, and cost less.
        """
        return (1 - 1 / self.paced_at_once) / PACE

    @classmethod
    def quick(cls, upstream: Upstream = "openai", upstream_module: str = "bench.upstream") -> Plan:
        """Returns a plan that shows that the bench works, and nothing about speed."""
        return cls(
            upstream=upstream,
            upstream_module=upstream_module,
            tokens=32,
            repetitions=1,
            first_token_samples=5,
            at_once={1: 3, 16: 16, 64: 64},
            paced_at_once=4,
            store_turns=16,
            idle_seconds=0.2,
            warm_up_turns=2,
        )
