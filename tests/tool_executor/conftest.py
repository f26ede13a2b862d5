"""What the tests of the tool executor share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from turnwire.testing.object_store import ObjectStore, running_object_store
from turnwire.tool_executor import attempts

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session")
def object_store() -> Generator[ObjectStore]:
    """A real S3-compatible store; each test has a place of its own."""
    with running_object_store() as store:
        yield store


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks tools again without a pause."""
    monkeypatch.setattr(attempts, "delay_of", lambda *_: 0.0)
