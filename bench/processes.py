"""Processes of the bench: started, found by their port, and what they have cost so far."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ROOT = Path(__file__).resolve().parents[1]
_READY_SECONDS = 30.0
_CPU_CLOCK = 2  # CPUCLOCK_SCHED: what the scheduler has counted, in nanoseconds


@dataclass(frozen=True, slots=True)
class Child:
    """A process that serves on a port of this machine."""

    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory, in bytes."""

    now: int
    peak: int


@asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncGenerator[Child]:
    """Gives a module run as a process that serves; it ends when the context is left, or when this process ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _READY_SECONDS)
        if not line.strip():
            raise RuntimeError(f"{module} ended at its start; what it wrote stands above")
        yield Child(process.pid, int(line))
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def serve_port(port: int) -> None:
    """Tells the parent the port of this child, and returns when the parent closes its end or dies."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process, all its threads, finer than the ticks of /proc."""
    # Linux makes the clock of a process out of its id: clock_getcpuclockid(3), which Python does not offer.
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK)


def memory(pid: int) -> Memory:
    """Returns the memory that a process holds, and the most it has held.

    Raises:
        RuntimeError: the process has ended.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        status = ""
    # One that has ended may still have a status, but it has no memory.
    kibibytes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+)", status, re.MULTILINE))
    if not kibibytes:
        raise RuntimeError(f"the process {pid} has ended")
    return Memory(int(kibibytes["VmRSS"]) * 1024, int(kibibytes["VmHWM"]) * 1024)
