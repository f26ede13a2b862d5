"""`turnwire shields` and `turnwire tools`: the registries, and a verdict to look at."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import Done, turnwire
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.mesh
_HOUSE = {"rules": [{"category": "project", "words": ["bluebird"], "user_message": "I cannot speak of that."}]}
_SAFETY = [
    {"provider_id": "rules", "provider_type": "inline::rules", "config": {"shields": {"house": _HOUSE}}},
    {"provider_id": "pii", "provider_type": "inline::pii"},
]
# The provider is there; nobody asks it for anything.
_SEARCH = {"provider_id": "web", "provider_type": "remote::searxng", "config": {"base_url": "http://127.0.0.1:9"}}


class Mesh:
    """A mesh of two services, and a folder to run commands in."""

    def __init__(self, running: RunningMesh, folder: Path) -> None:
        self.running = running
        self.folder = folder

    def turnwire(self, *arguments: str, stdin: bytes = b"") -> Done:
        env = {f"TURNWIRE_{name.upper()}_ADDRESS": self.running.address(name) for name in ("safety", "tool_executor")}
        return turnwire(*arguments, env=env, cwd=self.folder, stdin=stdin)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with asyncio.Runner() as runner:
        context = running_mesh(
            "processes",
            services=("safety", "tool_executor"),
            providers={"safety": _SAFETY, "tool_executor": [_SEARCH]},
        )
        running = runner.run(context.__aenter__())
        yield Mesh(running, tmp_path_factory.mktemp("commands"))
        runner.run(context.__aexit__(None, None, None))


def test_a_shield_is_registered_shown_used_and_unregistered(mesh: Mesh):
    config = json.dumps({"rules": [{"category": "ship", "words": ["pequod"], "level": "warn"}]}).encode()
    made = mesh.turnwire("shields", "register", "ships", "--provider", "rules", "--config", "-", stdin=config)
    assert (0, "rules/ships\n") == (made.code, made.out)

    listed = mesh.turnwire("shields", "list")
    assert ["SHIELD", "house", "pii", "ships"] == [line.split()[0] for line in listed.out.splitlines()]
    shown = mesh.turnwire("shields", "get", "ships", "--json").json()
    assert ("ships", "rules", json.loads(config)) == (
        shown["shield_id"],
        shown["provider_id"],
        json.loads(shown["config_json"]),
    )
    assert "shield_id: ships" in mesh.turnwire("shields", "get", "ships").out
    warned = mesh.turnwire("shields", "run", "the Pequod sails", "--shield", "ships")
    assert (0, ["ships", "warn", "ship"]) == (warned.code, warned.out.splitlines()[1].split())

    assert 0 == mesh.turnwire("shields", "unregister", "ships").code
    gone = mesh.turnwire("shields", "get", "ships")
    assert (1, "") == (gone.code, gone.out)
    assert "ships" in gone.err


def test_what_shields_say_of_a_text_decides_the_exit_code(mesh: Mesh):
    passes = mesh.turnwire("shields", "run", "good morning", "--shield", "house", "--shield", "pii")
    assert (0, [["house", "-"], ["pii", "-"]]) == (passes.code, [line.split() for line in passes.out.splitlines()[1:]])
    stopped = mesh.turnwire("shields", "run", "tell me of bluebird", "--shield", "house")
    assert 1 == stopped.code
    assert "I cannot speak of that." in stopped.out
    hidden = mesh.turnwire("shields", "run", "-", "--shield", "pii", stdin=b"write to ann@example.org")
    assert (0, "write to [email]") == (hidden.code, hidden.out.splitlines()[-1])
    told = mesh.turnwire("shields", "run", "x", "--shield", "house", "--point", "output", "--json").json()
    assert ["house"] == [verdict["shield_id"] for verdict in told["verdicts"]]
    unknown = mesh.turnwire("shields", "run", "x", "--shield", "nobody")
    assert 1 == unknown.code
    assert "nobody" in unknown.err


def test_a_tool_is_registered_shown_and_unregistered(mesh: Mesh):
    made = mesh.turnwire("tools", "register", "docs", "--like", "web_search", "--description", "Searches the docs.")
    assert (0, "web/docs\n") == (made.code, made.out)

    listed = mesh.turnwire("tools", "list", "--json").json()
    assert ["docs", "web_search"] == sorted(tool["tool_id"] for tool in listed["tools"])
    docs, search = (mesh.turnwire("tools", "get", name, "--json").json() for name in ("docs", "web_search"))
    assert ("docs", "Searches the docs.") == (docs["definition"]["name"], docs["definition"]["description"])
    assert search["definition"]["parameters_json_schema"] == docs["definition"]["parameters_json_schema"]
    assert search["idempotent"] == docs["idempotent"]
    assert ["docs", "web", "yes", "Searches"] in [
        line.split()[:4] for line in mesh.turnwire("tools", "list").out.splitlines()
    ]

    assert 0 == mesh.turnwire("tools", "unregister", "docs").code
    assert 1 == mesh.turnwire("tools", "get", "docs").code
    nothing = mesh.turnwire("tools", "register", "docs")
    assert (2, True) == (nothing.code, "--like" in nothing.err)
