"""The wheel, installed outside the checkout as a user does: the client alone, and the mesh with everything."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import turnwire
from tools.dev.layout import PROTOS, ROOT, SERVICES
from tools.docs import third_party
from turnwire.cli.services import SERVICES as NAMES
from turnwire.runtime.settings import PORTS
from turnwire.testing.mesh import free_port_offset
from turnwire.weights import cache_directory

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Installed:
    """An environment that knows the wheel and not the checkout, and an empty folder to be in."""

    binaries: Path
    folder: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment as a user does."""
        program, *arguments = command
        return subprocess.run(
            [self.binaries / program, *arguments],
            cwd=self.folder,
            env={
                "PATH": f"{self.binaries}:/usr/bin:/bin",
                "HOME": str(self.folder),
                "TURNWIRE_WEIGHTS_DIR": str(cache_directory()),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An installation without extras."""
    return install(wheel, [], tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def everything(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An installation with all extras."""
    return install(wheel, ["all"], tmp_path_factory.mktemp("everything"))


def install(wheel: Path, extras: list[str], folder: Path) -> Installed:
    """Installs the wheel and what these extras need, as locked, into an empty environment."""
    needed = third_party.needed_by(extras, third_party.installed_in(sys.path))
    lock = folder / "lock.txt"
    packages = third_party.locked(ROOT / "requirements" / "all.txt")
    lock.write_text("\n".join(package.block for package in packages if package.key in needed) + "\n")
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder / "venv")],
        [*pip, "--require-hashes", "-r", str(lock)],
        [*pip, "--no-deps", "--no-index", str(wheel)],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert 0 == done.returncode, done.stdout + done.stderr
    (folder / "empty").mkdir()
    return Installed(python.parent, folder / "empty")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"turnwire-{turnwire.__version__}.dist-info"

    assert {"turnwire", "turnwire_gateway", info} == {name.partition("/")[0] for name in names}
    assert {"turnwire/py.typed", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names
    assert not [name for name in names if name.endswith((".pyc", ".log", ".db", ".yaml", ".onnx", ".gguf"))]
    sources = {str(path.relative_to(SERVICES)) for path in (SERVICES / "turnwire").rglob("*.py*")}
    assert {name for name in sources if "__pycache__" not in name} <= names
    # What the bank `turnwire-docs` is filled with, and the page of the gateway.
    assert {"turnwire/project_docs/concepts.md", "turnwire_gateway/console/index.html"} <= names


def test_the_wheel_holds_the_stubs_of_every_proto_and_their_types(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for proto in PROTOS.rglob("*.proto"):
        stem = str(proto.relative_to(PROTOS).with_suffix(""))
        assert {f"{stem}_pb2.py", f"{stem}_pb2.pyi"} <= names
        if stem.endswith("_service"):
            assert {f"{stem}_pb2_grpc.py", f"{stem}_pb2_grpc.pyi"} <= names


def test_the_wheel_says_who_it_is(wheel: Path):
    info = f"turnwire-{turnwire.__version__}.dist-info"
    metadata = Parser().parsestr(zipfile.ZipFile(wheel).read(f"{info}/METADATA").decode())

    assert turnwire.__version__ == metadata["Version"]
    assert "Apache-2.0" == metadata["License-Expression"]
    assert ">=3.11" == metadata["Requires-Python"]
    assert {"agent", "inference", "safety", "memory", "tool-executor", "observability", "all"} <= set(
        metadata.get_all("Provides-Extra", [])
    )
    assert "# Turnwire" in metadata.get_payload()


def test_two_builds_are_the_same_bytes(wheel: Path, tmp_path: Path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    assert _hash(wheel) == _hash(next(tmp_path.glob("*.whl")))


def test_the_client_alone_brings_no_engine(client_only: Installed):
    done = client_only.run("python", "-m", "pip", "list", "--format", "json")
    names = {package["name"] for package in json.loads(done.stdout)}

    assert "turnwire" in names
    assert not names & {"numpy", "onnxruntime", "xllamacpp", "tokenizers", "aiohttp", "qdrant-client"}


def test_the_client_alone_is_imported_and_its_command_helps(client_only: Installed):
    imported = client_only.run("python", "-c", "import turnwire.client; print(turnwire.client.__file__)")
    helped = client_only.run("turnwire", "--help")
    version = client_only.run("turnwire", "--version")

    assert "" == imported.stderr
    assert str(client_only.binaries.parent) in imported.stdout
    assert 0 == helped.returncode
    assert "Ask an agent once" in helped.stdout
    assert f"turnwire, version {turnwire.__version__}" == version.stdout.strip()


def test_the_client_alone_says_what_is_down(client_only: Installed):
    # Addresses that nothing listens on: a mesh of this machine may have the usual ones.
    nowhere = {f"TURNWIRE_{service.upper()}_ADDRESS": "127.0.0.1:1" for service in NAMES}
    done = client_only.run("turnwire", "status", **nowhere)

    assert 1 == done.returncode
    assert "Traceback" not in done.stderr
    for service in NAMES:
        assert any(line.startswith(service) and " down " in line for line in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize("kind", ["client_only", "everything"])
def test_the_packages_of_an_installation_agree(kind: str, request: pytest.FixtureRequest):
    installed: Installed = request.getfixturevalue(kind)
    done = installed.run("python", "-m", "pip", "check")

    assert "No broken requirements found." == done.stdout.strip(), done.stdout


@pytest.fixture
def mesh(everything: Installed) -> Generator[int]:
    """A mesh that `turnwire up --detach` started in the empty folder, on moved ports; yields the offset."""
    offset = free_port_offset(NAMES)
    up = everything.run("turnwire", "up", "--detach", "--port-offset", str(offset))
    try:
        assert 0 == up.returncode, up.stdout + up.stderr
        assert "The mesh is up" in up.stdout
        yield offset
    finally:
        down = everything.run("turnwire", "down")
    assert "stopped" == down.stdout.strip()


@pytest.mark.model
def test_the_mesh_of_the_wheel_answers_with_the_embedded_model(everything: Installed, mesh: int):
    status = json.loads(everything.run("turnwire", "status", "--json").stdout)
    asked = everything.run("turnwire", "ask", "What is the capital of France? One sentence.")

    assert ["up"] * 7 == [service["state"] for service in status["services"]]
    assert f"127.0.0.1:{PORTS['agent'] + mesh}" in {service["address"] for service in status["services"]}
    assert 0 == asked.returncode, asked.stderr
    assert asked.stdout.strip()
    assert "qwen2.5-coder-0.5b" in asked.stderr
    turns = json.loads(everything.run("turnwire", "turns", "list", "--json").stdout)["turns"]
    assert ["TURN_STATUS_COMPLETED"] == [turn["status"] for turn in turns]
    assert (everything.folder / ".turnwire").is_dir()


def test_after_down_nothing_is_left_running(everything: Installed):
    run_file = everything.folder / ".turnwire" / "run" / "mesh.json"
    offset = free_port_offset(NAMES)
    assert 0 == everything.run("turnwire", "up", "--detach", "--port-offset", str(offset)).returncode
    children = json.loads(run_file.read_text())["children"]
    assert {*NAMES, "gateway"} == set(children)
    everything.run("turnwire", "down")

    assert [] == [name for name, pid in children.items() if Path(f"/proc/{pid}").exists()]
    assert not run_file.exists()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
