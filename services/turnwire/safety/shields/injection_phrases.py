"""What attempts to take a model over look like, in the words of several languages and in their structure.

A phrase is a pattern over a folded text with a weight: how sure a finding alone makes of an attempt. `untrusted` is the
weight in text that no person of the conversation wrote (retrieved, or the result of a tool), where an instruction to
the model has no business at all. Weights of different phrases near each other add up as independent signs do. The
phrases stand in `data/injection.toml`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnwire.safety.text.patterns import compiled

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILE = Path(__file__).parent / "data" / "injection.toml"
_FRAGMENT = re.compile("<<([a-z]+)>>")


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase."""

    name: str
    category: str
    weight: float
    untrusted: float
    pattern: Any


@lru_cache(maxsize=1)
def phrases() -> tuple[Phrase, ...]:
    """Returns all phrases."""
    content = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    fragments = {name: "".join(lines) for name, lines in content["fragments"].items()}
    return tuple(
        Phrase(
            entry["name"],
            entry["category"],
            entry["weight"],
            entry["untrusted"],
            compiled(f"(?is){_filled(''.join(entry['pattern']), fragments)}"),
        )
        for entry in content["phrases"]
    )


def _filled(pattern: str, fragments: Mapping[str, str]) -> str:
    """Fragments may be made of fragments."""
    while _FRAGMENT.search(pattern):
        pattern = _FRAGMENT.sub(lambda match: fragments[match.group(1)], pattern)
    return pattern
