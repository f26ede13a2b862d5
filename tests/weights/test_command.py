"""`python -m turnwire.weights` and how progress looks."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from tests.weights.conftest import CONTENT, Stock
from tests.weights.servers import Server, file_of
from turnwire.weights import Lines, in_bytes, locate
from turnwire.weights import progress as progress_module
from turnwire.weights.__main__ import main


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is half a second after the last."""
    ticks = itertools.count(0, 0.5)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(ticks))


def test_pull_list_and_verify(cache: Path, server: Server, stock: Stock, capsys: pytest.CaptureFixture[str]) -> None:
    stock.hold(file_of(CONTENT))
    server.put_on_hub(file_of(CONTENT), CONTENT)

    assert 0 == main(["list"])
    assert "toy: A toy, by us, Apache-2.0, 3.0 MB, default: not pulled" in capsys.readouterr().out
    assert 0 == main(["pull"])
    assert "weights.bin (3.0 MB) is there, from the maker's hub" in capsys.readouterr().err
    assert 0 == main(["list"])
    assert ": ready\n" in capsys.readouterr().out
    assert 0 == main(["verify"])
    assert f"{locate('toy')}: sound\n" == capsys.readouterr().out
    locate("toy").write_bytes(CONTENT[::-1])
    assert 1 == main(["verify", "toy"])


def test_a_refusal_is_one_line_and_status_one(cache: Path, stock: Stock, capsys: pytest.CaptureFixture[str]) -> None:
    stock.hold(file_of(CONTENT))

    assert 1 == main(["pull", "gpt"])

    assert "no model is called 'gpt'; there is: toy\n" == capsys.readouterr().err


def test_a_pipe_gets_a_line_now_and_then(clock: None) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin("weights.bin", 1000)
    for done in range(0, 1001, 50):
        lines.reached(done)
    lines.end()

    shown = stream.getvalue().splitlines()
    assert "weights.bin  100 B of 1.0 kB  10 %  100 B/s" == shown[0]
    assert 10 >= len(shown)
    assert "\r" not in stream.getvalue()


def test_a_pipe_hears_of_a_slow_download(clock: None) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin("weights.bin", 1_000_000)
    for done in range(30):
        lines.reached(done)

    assert 3 == len(stream.getvalue().splitlines())  # 30 looks, half a second apart: one every 5 s


def test_a_terminal_has_one_line_redrawn(clock: None) -> None:
    stream = Terminal()
    lines = Lines(stream)
    lines.begin("weights.bin", 1000)
    for done in range(0, 1001, 50):
        lines.reached(done)
    lines.note("ready")

    assert 1 == stream.getvalue().count("\n")
    assert stream.getvalue().endswith("\rready\n")
    assert "50 %" in stream.getvalue()


def test_bytes_kept_from_before_are_not_todays_speed(clock: None) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin("weights.bin", 1_000_000)
    for done in (900_000, 900_100, 900_200, 1_000_000):
        lines.reached(done)

    assert "  66.7 kB/s" in stream.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (466_247, "466.2 kB"), (491_400_064, "491.4 MB"), (1_117_320_768, "1.12 GB")],
)
def test_bytes_as_people_read_them(count: int, text: str) -> None:
    assert text == in_bytes(count)
