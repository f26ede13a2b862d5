"""A mesh of processes that the commands of a module talk to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.command import Done, turnwire
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

RULES = [
    {"contains": "hello", "text": "Hi there, friend."},
    {"contains": "in pieces", "pieces": ["One. ", "Two. ", "Three."], "tokens_per_second": 10},
    {"contains": "think", "reasoning": "Let me see.", "text": "Done."},
    {"contains": "endless", "text": "beginning", "hang": True},
    {"contains": "weather", "text": "I look it up.", "calls": [{"name": "get_weather", "arguments": {"city": "Bonn"}}]},
    {"after_tool": True, "text": "It is sunny."},
    {"contains": "broken", "error": "PROVIDER_ERROR"},
    {"contains": "flaky", "text": "half an", "error": "PROVIDER_UNAVAILABLE", "times": 1},
    {"contains": "flaky", "text": "A whole answer."},
]


class Mesh:
    """A mesh of processes, driven from tests that are no coroutines."""

    def __init__(self, running: RunningMesh, runner: asyncio.Runner, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self._runner = runner

    @property
    def env(self) -> dict[str, str]:
        return {f"TURNWIRE_{name.upper()}_ADDRESS": self.running.address(name) for name in ("agent", "inference")}

    def turnwire(self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Done:
        """Runs a command against the mesh."""
        return turnwire(*arguments, env=self.env | (env or {}), cwd=self.folder, stdin=stdin)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    def ask(self, method: str, *arguments: Any, **fields: Any) -> Any:
        """Calls a method of the Python client."""

        async def called() -> Any:
            async with self.running.client() as client:
                return await getattr(client, method)(*arguments, **fields)

        return self.run(called())


def start_mesh(folder: Path, **settings: Any) -> Iterator[Mesh]:
    with asyncio.Runner() as runner:
        context = running_mesh("processes", rules=RULES, folder=folder, **settings)
        running = runner.run(context.__aenter__())
        try:
            yield Mesh(running, runner, folder)
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh on the scripted model, for the tests of a module."""
    yield from start_mesh(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def caller(mesh: Mesh) -> str:
    """An agent with one function of its caller."""
    file = mesh.folder / "caller.yaml"
    file.write_text(
        """
model: scripted
tools:
  - function:
      definition:
        name: get_weather
        description: The weather.
        parameters_json_schema: '{"type": "object", "properties": {"city": {"type": "string"}}}'
""",
        encoding="utf-8",
    )
    return mesh.turnwire("agents", "create", "--from-file", str(file)).out.strip()
