"""The object store that the tests of the tool executor share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from turnwire.testing.object_store import ObjectStore, running_object_store

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session")
def object_store() -> Generator[ObjectStore]:
    """A real S3-compatible store; each test has a place of its own."""
    with running_object_store() as store:
        yield store
