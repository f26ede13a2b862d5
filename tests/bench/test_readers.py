"""The bench of stopped readers runs, and has figures of every phase. Nothing here is about speed."""

from __future__ import annotations

import asyncio
import re
import sys

import pytest

from bench.processes import ROOT
from bench.readers import PHASES


@pytest.mark.mesh
async def test_the_bench_of_readers_has_ratios_of_every_phase_and_the_memory_of_every_process():
    arguments = ("--readers", "20", "--rounds", "1", "--turns", "2", "--megabytes", "1")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.readers",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert 0 == process.returncode, errors.decode()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.decode().splitlines() if "|" in line]

    measured = [row for row in rows if row[0] in PHASES]
    assert [(phase, name) for phase in PHASES for name in ("first token", "whole turn")] == [
        (row[0], row[1]) for row in measured
    ]
    for row in measured:
        none, with_readers, ratio = (float(cell) for cell in row[2:5])
        assert pytest.approx(with_readers / none, abs=0.02) == ratio
    assert ["2, 2", "2, 2"] == [row[7] for row in measured if row[0] == "before"]
    assert all(int(count) for row in measured for count in re.findall(r"\d+", row[7]))
    assert {"inference", "sandbox_runner", "tool_executor", "agent"} == {row[0] for row in rows[-4:]}
