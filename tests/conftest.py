"""Fixtures that several folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from turnwire.testing.mesh import Topology, running_mesh

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["one_process", "processes"])
def topology(request: pytest.FixtureRequest) -> Topology:
    """All services in one process, and a process each: the same tests for both."""
    return request.param


@pytest.fixture
def mesh_in(topology: Topology) -> Callable[..., Any]:
    """Returns `running_mesh` in the topology of the test."""

    def start(**arguments: Any) -> Any:
        return running_mesh(topology, **arguments)

    return start
