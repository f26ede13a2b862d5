"""A cache, a manifest and sources of one's own for each test of the weight store."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.weights.servers import Server
from turnwire.weights import Model, WeightFile, hub, manifest, mirror

CONTENT = random.Random(7).randbytes(3_000_000)


def inherited_environment() -> dict[str, str]:
    """This process's environment, with its import path, for a Python started by a test."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Recorder:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.amounts: list[int] = []
        self.begun: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, label: str, total: int) -> None:
        self.begun.append(label)

    def reached(self, done: int) -> None:
        self.amounts.append(done)

    def end(self) -> None: ...


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Path:
    """An empty cache, whose pulls reach `server` and nothing else."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TURNWIRE_WEIGHTS_DIR", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", server.index_url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(mirror, "PAUSE_SECONDS", 0.001)
    return folder


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Stock:
    return Stock(monkeypatch)


class Stock:
    """Replaces the manifest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def hold(self, *files: WeightFile) -> Model:
        """The manifest is one default model, `toy`, of these files."""
        model = Model("toy", "A toy", "us", "Apache-2.0", files, default=True)
        self._monkeypatch.setattr(manifest, "MODELS", (model,))
        return model
