"""Which faults are made in this run, and where their outcomes are written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults import source
from turnwire.runtime.failpoints import declared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STORES = ("sqlite", "postgres")
LANES = 2
"""So many worlds on each store share the faults."""
COUNT = int(os.environ.get("TURNWIRE_FAULTS", "8"))
SEED = int(os.environ.get("TURNWIRE_FAULTS_SEED", "1"))
_ONLY = os.environ.get("TURNWIRE_FAULTS_ONLY", "")
_STORE = os.environ.get("TURNWIRE_FAULTS_STORE", "")
KIND = os.environ.get("TURNWIRE_FAULTS_KIND", "")
"""The one kind of faults to make; empty: all in turn."""
PLACE = os.environ.get("TURNWIRE_FAULTS_PLACE", "")
"""The beginning of the failpoints to hit; empty: all."""
_RESULTS = os.environ.get("TURNWIRE_FAULTS_RESULTS", "")


@dataclass(frozen=True)
class Outcome:
    """What came of one fault."""

    store: str
    seed: int
    number: int
    kind: str
    victim: str
    failpoint: str
    nth: int
    struck: bool
    """False when the turn was over before it reached the failpoint so often."""
    outcome: str
    """`completed`, `decided` (a person decided about a call in doubt), or `defect`."""
    recoveries: int
    seconds: float
    """From the end of the fault until the turn had ended, or asked; what is left of the turn is in it."""
    allowed: float
    """How long that may take."""


def planned() -> list[tuple[str, int, int]]:
    """Returns the faults to make: store, lane, number."""
    chosen = [_STORE] if _STORE else STORES
    numbers = [int(_ONLY)] if _ONLY else range(-(-COUNT // len(chosen)))
    return [(store, number % LANES, number) for store in chosen for number in numbers]


def note(outcome: Outcome) -> None:
    """Writes down an outcome for the report."""
    _append(f"{outcome.store}.outcomes", asdict(outcome))


def note_reached(store: str, counts: Mapping[str, int]) -> None:
    """Writes down how often failpoints were reached."""
    _append(f"{store}.reached", dict(counts))


def note_places(kinds: Sequence[str]) -> None:
    """Writes down which failpoints there are, and which kinds of faults can be made here."""
    source.modules()
    places = [name for name in declared() if not name.startswith("test.")]
    _append("all.places", {"failpoints": places, "kinds": list(kinds)})


def _append(name: str, line: object) -> None:
    if not _RESULTS:
        return
    with (Path(_RESULTS) / f"{name}-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
