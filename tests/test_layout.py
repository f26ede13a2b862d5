"""The rules of the house: sizes, and who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("agent", "inference", "safety", "memory", "tool_executor", "sandbox_runner")


def _sources(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in path.name]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "path", _sources("services") + _sources("gateway") + _sources("tools") + _sources("bench"), ids=_name
)
def test_a_module_is_one_noun_of_at_most_500_lines(path: Path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", _sources("tests"), ids=_name)
def test_a_test_module_has_at_most_800_lines(path: Path):
    assert len(path.read_text().splitlines()) <= 800


@pytest.mark.parametrize("service", SERVICES)
def test_services_meet_in_the_contract_only(service: str):
    others = [f"turnwire.{other}." for other in SERVICES if other != service]
    for path in _sources(f"services/turnwire/{service}"):
        for name in _imports(path):
            for other in others:
                assert not name.startswith(other) or name.startswith(f"{other}v1"), f"{_name(path)} imports {name}"


def test_the_runtime_knows_no_service():
    for path in _sources("services/turnwire/runtime"):
        for name in _imports(path):
            assert not any(name.startswith(f"turnwire.{service}.") for service in SERVICES), f"{_name(path)}: {name}"


def test_the_client_needs_no_service():
    for path in [*_sources("services/turnwire/client"), ROOT / "services/turnwire/fold.py"]:
        for name in _imports(path):
            for service in SERVICES:
                inner = name.startswith(f"turnwire.{service}.") and not name.startswith(f"turnwire.{service}.v1")
                assert not inner, f"{_name(path)} imports {name}"


def test_the_gateway_needs_the_contract_the_client_and_the_runtime_only():
    allowed = ["turnwire.client.", "turnwire.errors.", "turnwire.runtime.", "turnwire.ids.", "turnwire.fold."]
    allowed += [f"turnwire.{part}.v1." for part in (*SERVICES, "access", "common") if part != "sandbox_runner"]
    for path in _sources("gateway"):
        for name in _imports(path):
            own = name.startswith(("turnwire.", "turnwire_")) and name != "turnwire.__version__"
            here = name.startswith("turnwire_gateway.") or f"{name}.".startswith(tuple(allowed))
            assert not own or here, f"{_name(path)} imports {name}"


def test_nothing_imports_the_gateway_but_its_command():
    importing = {
        _name(path)
        for path in _sources("services")
        if any(name.startswith("turnwire_gateway") for name in _imports(path))
    }
    assert set() == importing  # the command loads it by name, when it is called


@pytest.mark.parametrize("path", _sources("services") + _sources("gateway"), ids=_name)
def test_nothing_prints(path: Path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_no_registry_host_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    # Written in two parts, or this file would be found.
    hosts = ["py" + "pi.org", "python" + "hosted.org", "registry." + "npmjs", "crates" + ".io", "proxy." + "golang"]
    pattern = re.compile("|".join(re.escape(host) for host in hosts))
    found = [name for name in listed if pattern.search((ROOT / name).read_text(errors="ignore"))]
    assert [] == found
