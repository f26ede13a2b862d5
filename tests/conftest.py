"""Fixtures that several folders share."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from turnwire.testing.mesh import Topology, running_mesh
from turnwire.testing.ports import free_port
from turnwire.testing.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

_LANE = re.compile(r"\[(\w+-lane\d+)-")


def pytest_sessionstart() -> None:
    """Takes the ports of this process before a test could take all."""
    free_port()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Returns what gives the tests to the workers file by file, and all files with the embedded model to one worker.

    The tests of a file share fixtures. The model is loaded once, and no two models share the processor. A file whose
    tests say in which lane they are, as `[sqlite-lane1-7]`, is given to as many workers as it has lanes.
    """
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        """Knows no markers: only the workers collect."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if lane := _LANE.search(nodeid):
                return f"{file} {lane.group(1)}"
            return "the model" if _runs_the_model(config.rootpath / file) else file

    return Files(config, log)


@cache
def _runs_the_model(file: Path) -> bool:
    near = (file, file.parent / "conftest.py")
    return any("pytest.mark.model" in each.read_text(encoding="utf-8") for each in near if each.exists())


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
