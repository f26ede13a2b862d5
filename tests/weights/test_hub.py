"""Pulling from the maker's hub: resume, refusal of wrong bytes, bounded retries, honest words when it is away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.weights.conftest import CONTENT, Recorder, Stock, inherited_environment
from tests.weights.servers import Fault, Server, file_of
from turnwire.weights import PullFailed, cache_directory, hub, locate, pull


def test_a_file_comes_from_the_hub_at_its_revision(
    cache: Path, server: Server, stock: Stock, progress: Recorder
) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)

    pull(None, progress)

    assert CONTENT == locate("toy").read_bytes()
    assert [path] == [request.path for request in server.requests]
    assert "/resolve/0123456789abcdef/" in path
    assert len(CONTENT) == progress.amounts[-1]
    assert sorted(progress.amounts) == progress.amounts
    assert [] == list(cache.rglob("*.part"))


def test_a_second_pull_asks_nobody(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)
    pull()
    server.requests.clear()

    pull()

    assert [] == server.requests


def test_a_cut_connection_is_carried_on(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.faults[path].extend([Fault(cut_after=1_000_000), Fault(cut_after=500_000)])

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert [None, "bytes=1000000-", "bytes=1500000-"] == [request.range for request in server.requests]


def test_more_cuts_than_tries_still_end_well_while_bytes_come(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.faults[path].extend([Fault(cut_after=100_000)] * (2 * hub.TRIES))

    pull()

    assert CONTENT == locate("toy").read_bytes()


def test_a_killed_pull_is_carried_on(cache: Path, server: Server, stock: Stock) -> None:
    file = file_of(CONTENT)
    stock.hold(file)
    path = server.put_on_hub(file, CONTENT)
    server.faults[path].append(Fault(hold_after=2_000_000))
    script = """
        from turnwire.weights import Model, manifest, pull
        from tests.weights.servers import file_of
        from tests.weights.conftest import CONTENT
        manifest.MODELS = (Model("toy", "A toy", "us", "Apache-2.0", (file_of(CONTENT),), default=True),)
        pull()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=inherited_environment())
    assert server.holding.wait(30)
    part = cache / "toy" / "weights.bin.part"
    while not part.exists() or part.stat().st_size < 1_000_000:
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert f"bytes={kept}-" == server.requests[-1].range


def test_a_server_without_ranges_starts_over(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.faults[path].extend([Fault(cut_after=1_000_000), Fault(ignore_range=True)])

    pull()

    assert CONTENT == locate("toy").read_bytes()


def test_wrong_bytes_are_refused_and_removed(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT[:-1] + b"!")

    with pytest.raises(PullFailed, match=r"sha256 .* is pinned; the bytes were removed"):
        pull()

    assert [] == [path for path in (cache / "toy").iterdir() if path.name != ".lock"]


def test_more_bytes_than_the_file_has_are_refused(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT + b"!")

    with pytest.raises(PullFailed, match="sent more than the 3000000 bytes"):
        pull()


def test_a_kept_beginning_that_is_wrong_is_fetched_anew(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin.part").write_bytes(b"\0" * 1_000_000)

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert ["bytes=1000000-", None] == [request.range for request in server.requests]


def test_a_kept_beginning_longer_than_the_file_is_thrown_away(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin.part").write_bytes(CONTENT + b"more")

    pull()

    assert CONTENT == locate("toy").read_bytes()


def test_a_beginning_that_the_hub_cannot_carry_on_is_thrown_away(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.faults[path].append(Fault(status=416))
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "weights.bin.part").write_bytes(CONTENT[:1_000_000])

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert ["bytes=1000000-", None] == [request.range for request in server.requests]


def test_a_busy_hub_is_asked_again(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.faults[path].extend([Fault(status=503), Fault(status=429, headers={"Retry-After": "0"})])

    pull()

    assert CONTENT == locate("toy").read_bytes()


def test_a_hub_that_stays_busy_is_given_up(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.always[path] = Fault(status=503)

    with pytest.raises(PullFailed, match=f"HTTP 503 .*{hub.TRIES} times in a row"):
        pull()

    assert hub.TRIES == len(server.requests)


def test_retry_after_is_kept_to(cache: Path, server: Server, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.faults[path].extend([Fault(status=429, headers={"Retry-After": "7"})])
    slept: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", slept.append)

    pull()

    assert [7.0] == slept


def test_a_file_the_hub_does_not_have_is_not_asked_for_twice(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))

    with pytest.raises(PullFailed, match=r"HTTP 404 for maker/model/weights\.bin at revision 0123456789ab"):
        pull()

    assert 1 == len(server.requests)


def test_a_redirect_to_storage_keeps_the_range(cache: Path, server: Server, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))
    path = server.put_on_hub(file_of(CONTENT), CONTENT)
    server.files["/storage"] = CONTENT
    server.always[path] = Fault(status=302, headers={"Location": "/storage"})
    server.faults["/storage"].append(Fault(cut_after=1_000_000))

    pull()

    assert CONTENT == locate("toy").read_bytes()
    assert [None, "bytes=1000000-"] == [request.range for request in server.asked("/storage")]


def test_a_hub_told_to_be_offline_is_not_asked(
    cache: Path, server: Server, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)

    with pytest.raises(PullFailed, match="HF_HUB_OFFLINE is set"):
        pull()

    assert [] == server.requests


@contextlib.contextmanager
def _soon() -> Generator[None]:
    """Fails when the block takes as long as a connection without a limit of its own."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 10


def test_a_hub_that_drops_packets_is_given_up_soon(cache: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.2)
    stock.hold(file_of(CONTENT))
    with contextlib.ExitStack() as sockets:
        # Once its queue is full the kernel answers no further connection: as a firewall that drops.
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")

        with _soon(), pytest.raises(PullFailed, match="not reachable"):
            pull()


def test_a_hub_that_answers_nothing_is_given_up_soon(
    cache: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "READ_SECONDS", 0.2)
    stock.hold(file_of(CONTENT))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")

        with _soon(), pytest.raises(PullFailed, match=r"not reachable \(timed out\)"):
            pull()


def test_a_resolver_that_does_not_answer_is_given_up_soon(
    cache: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.05)

    def unanswered(*_arguments: object, **_named: object) -> None:
        never.wait()

    monkeypatch.setattr(hub.socket, "getaddrinfo", unanswered)
    stock.hold(file_of(CONTENT))

    with pytest.raises(PullFailed, match="its name did not resolve within"):
        pull()
    never.set()


def test_the_error_says_what_to_do(cache: Path, stock: Stock) -> None:
    stock.hold(file_of(CONTENT))

    with pytest.raises(PullFailed) as caught:
        pull()

    assert str(cache_directory() / "toy" / "weights.bin") in str(caught.value)
    assert "turnwire models pull toy" in str(caught.value)
