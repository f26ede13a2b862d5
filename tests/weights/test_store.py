"""The cache: what counts as there, who may fetch, and what a full disk or a damaged file leads to."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.weights.conftest import CONTENT, Recorder, Stock, inherited_environment
from tests.weights.servers import Fault, Server, file_of
from turnwire.weights import (
    CacheUnusable,
    DiskFull,
    PullFailed,
    UnknownModel,
    WeightsMissing,
    cache_directory,
    download,
    locate,
    manifest,
    pull,
    pulling,
    status,
    verify,
)


@pytest.fixture
def pulled(cache: Path, server: Server, stock: Stock) -> Path:
    """The path of a file that was pulled."""
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)
    pull()
    server.requests.clear()
    return locate("toy")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TURNWIRE_WEIGHTS_DIR", raising=False)
    assert Path("/home/somebody/.cache/turnwire/weights") == cache_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert Path("/caches/turnwire/weights") == cache_directory()
    monkeypatch.setenv("TURNWIRE_WEIGHTS_DIR", str(tmp_path))
    assert tmp_path == cache_directory()


def test_locating_what_nobody_pulled_names_the_command(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)

    with pytest.raises(WeightsMissing, match="`turnwire models pull toy`"):
        locate("toy")

    assert [] == server.requests


def test_the_graph_in_another_precision_has_its_own_command(cache: Path) -> None:
    with pytest.raises(WeightsMissing, match="`turnwire models pull minilm --precision fp32`"):
        locate("minilm", precision="fp32")


def test_an_unknown_model_is_refused_with_those_there_are(cache: Path) -> None:
    names = [model.name for model in manifest.MODELS]
    for ask in (lambda: locate("gpt"), lambda: pull(["gpt"]), lambda: status(["gpt"]), lambda: verify(["gpt"])):
        with pytest.raises(UnknownModel, match=", ".join(names)):
            ask()


def test_an_unknown_file_or_precision_is_refused_with_those_there_are(cache: Path) -> None:
    with pytest.raises(UnknownModel, match=r"model\.safetensors, tokenizer\.json"):
        locate("minilm", "vocab.txt")
    with pytest.raises(UnknownModel, match="int8, fp32"):
        pull(["minilm"], precision="int4")  # pyright: ignore[reportArgumentType] - what a caller without types can do


def test_a_beginning_is_not_there(cache: Path, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin.part").write_bytes(CONTENT[:1000])

    with pytest.raises(WeightsMissing):
        locate("toy")

    (entry,) = status()
    assert (1000, False, False) == (entry.files[0].have, entry.files[0].ready, entry.ready)


def test_a_file_put_there_by_hand_is_taken_if_its_hash_fits(
    cache: Path, server: Server, stock: Stock, progress: Recorder
) -> None:
    stock.hold(file_of(CONTENT))
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin").write_bytes(CONTENT)
    with pytest.raises(WeightsMissing, match="has not been checked"):
        locate("toy")

    pull(None, progress)

    assert CONTENT == locate("toy").read_bytes()
    assert [] == server.requests


def test_a_file_put_there_by_hand_that_does_not_fit_is_replaced(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin").write_bytes(CONTENT[::-1])

    pull()

    assert CONTENT == locate("toy").read_bytes()


def test_a_file_that_does_not_fit_is_gone_even_if_there_is_no_other(cache: Path, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin").write_bytes(CONTENT[::-1])

    with pytest.raises(PullFailed):
        pull()

    assert not (cache / "toy" / "weights.bin").exists()


def test_a_warm_pull_writes_nothing_so_a_cache_may_be_read_only(pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)

    (entry,) = pull()

    assert entry.ready


def test_a_changed_file_is_not_located(pulled: Path) -> None:
    pulled.write_bytes(CONTENT + b"!")

    with pytest.raises(WeightsMissing):
        locate("toy")


def test_a_new_pin_makes_the_old_file_not_there(pulled: Path, server: Server, stock: Stock) -> None:
    changed = CONTENT[::-1]
    stock.hold(file_of(changed))
    server.put_on_hub(file_of(changed), changed)
    with pytest.raises(WeightsMissing):
        locate("toy")

    pull()

    assert changed == locate("toy").read_bytes()


def test_verify_finds_a_sound_file_sound(pulled: Path) -> None:
    (finding,) = verify()

    assert (pulled, True) == (finding.path, finding.sound)
    assert pulled == locate("toy")


def test_verify_removes_damage_that_a_stamp_does_not_show(pulled: Path, server: Server) -> None:
    times = pulled.stat()
    pulled.write_bytes(CONTENT[:-1] + b"!")
    os.utime(pulled, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert pulled == locate("toy")

    (finding,) = verify()

    assert not finding.sound
    assert "turnwire models pull toy" in finding.text
    with pytest.raises(WeightsMissing):
        locate("toy")
    pull()
    assert CONTENT == locate("toy").read_bytes()


def test_two_processes_fetch_once(cache: Path, server: Server, stock: Stock) -> None:
    file = file_of(CONTENT)
    stock.hold(file)
    path = server.put_on_hub(file, CONTENT)
    server.faults[path].append(Fault(hold_after=1_000_000))
    script = """
        import sys
        from turnwire.weights import Lines, Model, manifest, pull
        from tests.weights.servers import file_of
        from tests.weights.conftest import CONTENT
        manifest.MODELS = (Model("toy", "A toy", "us", "Apache-2.0", (file_of(CONTENT),), default=True),)
        pull(None, Lines(sys.stderr))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    first = subprocess.Popen(command, env=inherited_environment(), stderr=subprocess.PIPE, text=True)
    assert server.holding.wait(30)
    second = subprocess.Popen(command, env=inherited_environment(), stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert "another process is pulling it" in second.stderr.readline()
    assert 1 == len(server.requests)

    server.release()
    outputs = [process.communicate(timeout=30) for process in (first, second)]

    assert [0, 0] == [first.returncode, second.returncode], outputs
    assert CONTENT == locate("toy").read_bytes()
    assert ["bytes=1000000-"] == [request.range for request in server.requests[1:]]


def test_threads_of_one_process_fetch_once(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)
    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert CONTENT == locate("toy").read_bytes()
    assert 1 == len(server.requests)


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Generator[None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk takes the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    cache: Path, server: Server, stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)
    disk = tmp_path / "disk"
    monkeypatch.setenv("TURNWIRE_WEIGHTS_DIR", str(disk))
    with (
        _small_disk(disk, 1_000_000),
        pytest.raises(DiskFull, match=r"no room on the disk of .*3\.0 MB more is needed"),
    ):
        pull()

    assert [] == server.requests


def test_a_disk_that_fills_up_on_the_way_is_said_and_the_rest_comes_later(
    cache: Path, server: Server, stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    disk = tmp_path / "disk"
    monkeypatch.setenv("TURNWIRE_WEIGHTS_DIR", str(disk))
    with _small_disk(disk, 3_500_000):
        roomy = pulling.shutil.disk_usage("/")

        def as_before(_path: Path) -> object:
            return roomy

        with monkeypatch.context() as patch:
            # Somebody else takes the room after the look at it.
            (disk / "other").write_bytes(b"\0" * 1_500_000)
            patch.setattr(pulling.shutil, "disk_usage", as_before)
            with pytest.raises(DiskFull, match="TURNWIRE_WEIGHTS_DIR"):
                pull()
        kept = (disk / "toy" / "weights.bin.part").stat().st_size
        assert kept > 0
        (disk / "other").unlink()

        pull()

        assert CONTENT == locate("toy").read_bytes()
        assert f"bytes={kept}-" == server.asked(path)[-1].range


def test_a_full_disk_without_a_disk_of_ones_own(
    cache: Path, server: Server, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)

    def full(_self: object, _written: Path, _sha256: str) -> None:
        with download.cache_faults(cache):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("turnwire.weights.cache.CachedFile.keep", full)

    with pytest.raises(DiskFull, match="Free some space"):
        pull()


def test_a_cache_that_cannot_be_written_is_said(
    cache: Path, server: Server, stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.hold(file_of(CONTENT))

    def refuse(*_args: object, **_named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(CacheUnusable, match="cannot write to the weight cache"):
        pull()


def test_a_warm_pull_imports_nothing_heavy(pulled: Path) -> None:
    heavy = {"numpy", "onnx", "onnxruntime", "grpc", "urllib.request", "http.client", "ssl", "subprocess", "zipfile"}
    script = f"""
        import sys
        from turnwire.weights import manifest, pull
        from turnwire.weights.manifest import HubFile, Model, WeightFile
        manifest.MODELS = {manifest.MODELS!r}
        pull()
        print(sorted(set(sys.modules) & {heavy!r}))
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=inherited_environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert "[]" == answer.stdout.strip()


def test_the_manifest_adds_up() -> None:
    for model in manifest.MODELS:
        assert model.licence
        for file in model.files:
            assert 64 == len(bytes.fromhex(file.sha256)) * 2
            assert 40 == len(file.hub.revision)
            assert file.mirror is not None
            whole_parts = len(file.mirror.parts) - 1
            assert whole_parts * file.mirror.part_size < file.size <= (whole_parts + 1) * file.mirror.part_size
    assert ["qwen2.5-coder-0.5b", "minilm"] == [model.name for model in manifest.default_models()]
