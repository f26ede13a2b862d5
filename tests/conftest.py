"""Fixtures that several folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from turnwire.testing.mesh import Topology, running_mesh
from turnwire.testing.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


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


@pytest.fixture(scope="session")
def postgres_server() -> Generator[Postgres]:
    """A PostgreSQL that the tests of a process share: whoever ends it has one of its own by `running_postgres`."""
    with running_postgres(durable=False) as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> Generator[str]:
    """The URL of an empty database, for `running_mesh(store={"url": postgres})` and the like."""
    with postgres_server.database() as url:
        yield url
