"""Starts the process that goes behind Landlock, and ends all that is left below it when either side goes.

It is the outer half of the engine `landlock`, runs as the user of the runner, and never runs model-written code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

# A script of its own, in the copy of this folder that the runner made: nothing of ours is installed there.
sys.path.insert(0, os.path.realpath(__file__).rsplit("/turnwire/", 1)[0])

from turnwire.sandbox_runner.interior import confinement, supervisor


def main(configuration: str) -> int:
    """Returns the exit code of the process inside."""
    confinement.die_with_parent(signal.SIGTERM)
    confinement.adopt()
    # Before there is anything to end.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    inside = os.fork()
    if inside == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os._exit(supervisor.main(configuration))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for pipe in (0, 1):
        os.close(pipe)
    code = 0
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == inside:
            code = os.waitstatus_to_exitcode(status)
            break
    _end_all()
    return code if code >= 0 else 128 - code


def _end(number: int, frame: object) -> None:
    _end_all()
    os._exit(128 + number)


def _end_all() -> None:
    """Kills what is below until nothing is: the children of one that is killed become ours."""
    while True:
        for process in _below(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _below(process: int) -> list[int]:
    found: list[int] = []
    waiting = [process]
    while waiting:
        folder = f"/proc/{waiting.pop()}/task"
        # A process may end while it is looked at; a child belongs to the thread that started it.
        with contextlib.suppress(OSError):
            for thread in os.listdir(folder):
                with open(f"{folder}/{thread}/children") as file:
                    children = [int(word) for word in file.read().split()]
                found += children
                waiting += children
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
