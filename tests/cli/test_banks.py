"""`turnwire banks`: from a folder of files to an answer."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.cli.command import Done, turnwire
from tests.memory.conftest import WordVectors, serving_words
from turnwire.testing.mesh import RunningMesh, running_mesh
from turnwire.tool_executor.v1 import artifact_service_pb2
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.mesh
_BANKS = [
    {"provider_id": "vectors", "provider_type": "inline::qdrant-edge"},
    {"provider_id": "file", "provider_type": "inline::sqlite"},
]


class Mesh:
    """A mesh, and a folder to run commands in."""

    def __init__(self, running: RunningMesh, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.running = running
        self.folder = folder
        self.loop = loop

    def turnwire(self, *arguments: str) -> Done:
        names = ("agent", "inference", "memory", "tool_executor")
        env = {f"TURNWIRE_{name.upper()}_ADDRESS": self.running.address(name) for name in names}
        return turnwire(*arguments, env=env, cwd=self.folder)

    def artifacts(self) -> list[str]:
        """Returns the ids of all kept files."""

        async def asked() -> list[str]:
            async with grpc.aio.insecure_channel(self.running.address("tool_executor")) as channel:
                stub: Any = ArtifactServiceStub(channel)
                response = await stub.ListArtifacts(artifact_service_pb2.ListArtifactsRequest())
                return [artifact.artifact_id for artifact in response.artifacts]

        return asyncio.run_coroutine_threadsafe(asked(), self.loop).result(20)

    def write(self, **files: str) -> Path:
        pages = self.folder / "pages"
        for name, content in files.items():
            path = pages / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return pages


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    with asyncio.Runner() as runner:
        words = serving_words()
        served: WordVectors = runner.run(words.__aenter__())
        # The model is served by this process, and commands are waited for in it: its loop runs in a thread.
        loop = runner.get_loop()
        context = running_mesh(
            "processes",
            services=("inference", "memory", "tool_executor"),
            folder=folder / "state",
            providers={"inference": [served.provider], "memory": _BANKS},
            memory={"docs_dir": ""},
        )
        (folder / "state").mkdir()
        running = runner.run(context.__aenter__())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield Mesh(running, folder, loop)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            runner.run(context.__aexit__(None, None, None))
            runner.run(words.__aexit__(None, None, None))


def _rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_a_folder_becomes_a_bank_that_answers_and_again_costs_nothing(mesh: Mesh):
    folder = mesh.write(
        cats_dot_md="# Cats\n\nA cat purrs on the sofa.\n",
        deep__dogs_dot_txt="A dog barks at night.",
        _dot_hidden__secret_dot_md="# Secret\n",
        picture_dot_png="no text",
    )
    first = mesh.turnwire("banks", "import", str(folder))
    assert 0 == first.code, first
    lines = first.out.splitlines()
    assert ["cats.md: inserted, 1 chunk", "deep/dogs.txt: inserted, 1 chunk"] == sorted(lines[:-1])
    assert "pages: 2 of 2 documents are in" == lines[-1]
    assert ["pages", "vector", "2", "2", "vectors"] in [row[:5] for row in _rows(mesh.turnwire("banks", "list").out)]

    answer = mesh.turnwire("banks", "query", "who purrs on the sofa?", "--bank", "pages", "--max-chunks", "1").out
    assert "pages/cats.md (Cats)" in answer
    assert "A cat purrs on the sofa." in answer
    found = mesh.turnwire("banks", "query", "who barks at night?", "--bank", "pages", "--json").json()["chunks"]
    assert "deep/dogs.txt" == found[0]["document_id"]

    mesh.write(cats_dot_md="# Cats\n\nA cat sleeps.\n")
    again = mesh.turnwire("banks", "import", str(folder), "--json").json()
    states = {each["document_id"]: each["state"] for each in again["documents"]}
    assert {"cats.md": "DOCUMENT_STATE_INSERTED", "deep/dogs.txt": "DOCUMENT_STATE_UNCHANGED"} == states

    one = mesh.turnwire("banks", "import", str(folder), "--bank", "other", "--pattern", "*.txt", "--json").json()
    assert ("other", ["deep/dogs.txt"]) == (one["bank_id"], [each["document_id"] for each in one["documents"]])


def test_a_large_file_goes_by_way_of_the_artifacts_and_a_bad_one_is_told(mesh: Mesh):
    folder = mesh.folder / "mixed"
    folder.mkdir()
    (folder / "large.txt").write_text("The zebra is striped. " + "filler words of no weight " * 60_000)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nthis is cut off")
    assert (folder / "large.txt").stat().st_size > 1024 * 1024
    mesh.turnwire("banks", "create", "mixed", "--kind", "keyword", "--chunk-size", "2000")

    ended = mesh.turnwire("banks", "import", str(folder))
    assert 1 == ended.code
    assert "broken.pdf was refused" in ended.err
    assert "mixed: 1 of 2 documents are in" == ended.out.splitlines()[-1]
    found = mesh.turnwire("banks", "query", "striped zebra", "--bank", "mixed", "--json").json()["chunks"]
    assert "large.txt" == found[0]["document_id"]
    # What was uploaded for it is gone.
    assert [] == mesh.artifacts()


def test_a_bank_from_its_making_to_its_end(mesh: Mesh):
    made = mesh.turnwire("banks", "create", "graph", "--kind", "graph", "--depth", "2", "--name", "G", "--json").json()
    assert ("graph", "G", {"depth": 2}) == (made["bank_id"], made["name"], made["graph"])
    assert "graph2\n" == mesh.turnwire("banks", "create", "graph2", "--kind", "graph").out
    assert made == mesh.turnwire("banks", "get", "graph", "--json").json()
    assert 2 == mesh.turnwire("banks", "create", "x", "--kind", "graph", "--chunk-size", "20").code
    assert 1 == mesh.turnwire("banks", "create", "graph", "--kind", "graph").code
    assert {} == mesh.turnwire("banks", "delete", "graph", "--json").json()
    gone = mesh.turnwire("banks", "get", "graph")
    assert 1 == gone.code
    assert "There is no memory bank 'graph'" in gone.err


def test_a_folder_without_anything_to_read_is_wrong_usage(mesh: Mesh):
    (mesh.folder / "empty").mkdir()
    ended = mesh.turnwire("banks", "import", str(mesh.folder / "empty"))
    assert 2 == ended.code
    assert "nothing to read" in ended.err
