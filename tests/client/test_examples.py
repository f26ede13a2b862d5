"""The examples run as they stand, each as a process of its own; the pages' snippets too."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from turnwire.client import Client
from turnwire.runtime.settings import Settings
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from turnwire.testing.mesh import RunningMesh

ROOT = Path(__file__).resolve().parents[2]
RULES: list[dict[str, Any]] = [
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "after_tool": False},
    {"contains": "the time", "calls": [{"name": "get_time", "arguments": {}}], "after_tool": False},
    {"after_tool": True, "text": "As the tool says."},
    {"contains": "gRPC", "text": "A way to call procedures elsewhere."},
    {"contains": "long story", "tokens": 60, "tokens_per_second": 60},
    {"matches": r"\d+ times 13\b", "error": "PROVIDER_ERROR"},
    {"contains": "times", "text": "a number"},
]

# What each prints, and what it is told on its standard input.
EXAMPLES: dict[str, tuple[str, str]] = {
    "ask.py": ("", r"^A way to call procedures elsewhere\.\n\[\d+ tokens\]\n$"),
    "chat_with_tools.py": (
        "the weather?\nthe time?\n\n",
        r"(?s)^>   get_weather -> \{\"city\":\"Berlin\",\"degrees\":21,\"sky\":\"clear\"\}\nAs the tool says\.\n"
        r">   get_time -> 20\d\d-\d\d-\d\dT\d\d:\d\d\+00:00\nAs the tool says\.\n> $",
    ),
    "resume.py": (
        "",
        r"(?s)^left turn turn_\w+ after event \d+: 'w1 .*"
        r"event \d+: turn_completed\nthe whole answer: w1 w2 .*w60 \n$",
    ),
    "many_turns.py": ("", r"(?s)^What is 1 times 1\? a number\n.*What is 13 times 13\? .*fails as its script says"),
    "register_model.py": (
        "",
        r"^agent agent_\w+ is at version 2\nversion 1: Is water wet\?\nversion 2: Is water wet\?\n$",
    ),
    "test_my_agent.py": ("", r"2 tests passed\n$"),
}


def test_every_example_is_run_here():
    assert sorted(EXAMPLES) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
async def test_an_example_runs_as_it_stands(name: str, tmp_path: Path):
    said, expected = EXAMPLES[name]
    async with running_mesh(rules=RULES) as mesh:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "examples" / name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path,
            env=os.environ | _addresses(mesh) | {"PYTHONPATH": str(ROOT / "services")},
        )
        output, errors = await process.communicate(said.encode())
    assert (0, "") == (process.returncode, errors.decode())
    assert re.search(expected, output.decode()), output.decode()


def _addresses(mesh: RunningMesh) -> dict[str, str]:
    return {
        "TURNWIRE_AGENT_ADDRESS": mesh.address("agent"),
        "TURNWIRE_INFERENCE_ADDRESS": mesh.address("inference"),
    }


def _blocks(page: str, language: str) -> list[tuple[int, str]]:
    """The code blocks of a page, each with the number of its first line."""
    text = (ROOT / "docs" / page).read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


async def _run(page: str, given: dict[str, Any]) -> int:
    """Runs the blocks of a page one after the other, as in a shell that may await; returns how many there are.

    Each begins with what is given, and what the ones before have left.
    """
    blocks = _blocks(page, "python")
    names: dict[str, Any] = {}
    for line, source in blocks:
        # Lines of a traceback are those of the page.
        code = compile("\n" * (line - 1) + source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names |= given
        running = eval(code, names)
        if inspect.isawaitable(running):
            await running
    return len(blocks)


async def test_the_snippets_of_the_clients_page_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async with running_mesh(rules=RULES) as mesh:
        for name, value in _addresses(mesh).items():
            monkeypatch.setenv(name, value)
        async with Client.connect() as client:
            session = await client.create_session("assistant")
            assert await _run("client.md", {"client": client, "session": session}) >= 8
    printed = capsys.readouterr().out
    for expected in ("1 turn_started", "What is a monad?", "As the tool says.", "w60", "scripted"):
        assert expected in printed


async def test_the_snippets_of_the_page_on_testing_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert await _run("testing.md", {}) >= 3
    assert (tmp_path / "who.jsonl").exists()


def test_the_settings_on_the_page_on_testing_are_settings():
    blocks = _blocks("testing.md", "yaml")
    assert blocks
    for _, source in blocks:
        settings = Settings.model_validate(yaml.safe_load(source))
        assert ["inline::scripted"] == [entry.provider_type for entry in settings.providers.inference]
