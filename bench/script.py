"""What a scripted upstream is asked to write, and what it then writes: the same rule on both ends of the bench."""

from __future__ import annotations

from dataclasses import dataclass

PACE = 20.0
"""Tokens a second of a paced answer."""
SCRIPTED_LABEL = "w"
"""How `inline::scripted` begins each of its numbered words."""


@dataclass(frozen=True, slots=True)
class Script:
    """One answer: so many numbered words that begin with its label, at once or at a pace."""

    label: str
    tokens: int
    paced: bool = False

    @property
    def prompt(self) -> str:
        """What the user says to get this answer."""
        return f"{'paced' if self.paced else 'burst'} {self.label}"

    @property
    def words(self) -> list[str]:
        """The tokens of the answer. Labels differ, so a token that strayed into another turn is found out."""
        return [f"{self.label}{number} " for number in range(1, self.tokens + 1)]

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.words)

    @classmethod
    def read(cls, prompt: str, tokens: int) -> Script:
        """Returns the answer that a prompt asks for."""
        pace, _, label = prompt.partition(" ")
        if pace not in {"paced", "burst"}:
            raise ValueError(f"no prompt of the bench: {prompt!r}")
        return cls(label, tokens, paced=pace == "paced")
