"""What `./dev faults` tells at its end."""

from __future__ import annotations

from typing import Any

from tools.dev.faults import report


def _outcome(kind: str, outcome: str, *, seconds: float, struck: bool = True, recoveries: int = 0) -> dict[str, Any]:
    return {
        "store": "sqlite",
        "kind": kind,
        "failpoint": f"agent.{kind}",
        "struck": struck,
        "outcome": outcome,
        "recoveries": recoveries,
        "seconds": seconds,
    }


def test_outcomes_are_counted_and_what_was_not_reached_or_not_made_is_named():
    outcomes = [
        _outcome("SIGKILL", "completed", seconds=0.5, recoveries=1),
        _outcome("SIGKILL", "decided", seconds=2.25),
        _outcome("SIGKILL", "defect", seconds=0.0, struck=False),
        _outcome("SIGSTOP", "completed", seconds=1.0),
    ]
    places = [{"failpoints": ["agent.SIGKILL", "agent.SIGSTOP", "agent.never"], "kinds": ["SIGKILL", "SIGSTOP"]}]

    told = report(outcomes, [{"agent.SIGKILL": 3}, {"agent.SIGSTOP": 1}], places)

    assert "| sqlite | SIGKILL | 3 | 2 | 1 | 1 | 1 | 1 | 2.2 s |" in told
    assert "| sqlite | SIGSTOP | 1 | 1 | 1 | 0 | 0 | 0 | 1.0 s |" in told
    assert "Of 3 failpoints 2 were hit, and 2 reached. Not reached:\n  agent.never\n" in told
    assert "Left out here: full disk: only root can mount a small disk." in told
    assert "Left out here: clock moved: the package libfaketime is not installed." in told


def test_with_nothing_left_out_nothing_is_said_of_it():
    kinds = ["full disk", "clock moved"]
    told = report([_outcome("full disk", "completed", seconds=1)], [{"a": 1}], [{"failpoints": ["a"], "kinds": kinds}])

    assert "Not reached:\n  none\n" in told
    assert "Left out" not in told
