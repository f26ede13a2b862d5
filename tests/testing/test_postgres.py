"""The PostgreSQL that tests get: a database each, and a server that dies and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.runtime.serving import ROOT
from turnwire.testing.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="module")
def server() -> Generator[Postgres]:
    with running_postgres(durable=False) as running:
        yield running


def test_each_test_has_a_database_of_its_own(server: Postgres):
    with server.database() as first, server.database() as second:
        names = [url.partition("@/")[2].partition("?")[0] for url in (first, second)]
        server.psql("CREATE TABLE notes (number BIGINT)", names[0])
        there = [server.psql("SELECT count(*) FROM pg_tables WHERE tablename = 'notes'", name) for name in names]
        assert ["1", "0"] == there
    left = server.psql("SELECT datname FROM pg_database").splitlines()
    assert not set(names) & set(left)


def test_what_is_committed_survives_a_kill_and_a_stop(server: Postgres):
    server.psql("CREATE TABLE kept (number BIGINT)")
    for number, end in enumerate((server.kill, server.stop)):
        server.psql(f"INSERT INTO kept VALUES ({number})")
        ended = server.pids()
        end()
        assert [] == [pid for pid in ended if _runs(pid)]
        with pytest.raises(RuntimeError, match="psql"):
            server.psql("SELECT 1")
        server.start()
    assert "0\n1" == server.psql("SELECT number FROM kept ORDER BY number")


def test_it_does_not_run_as_root(server: Postgres):
    assert 0 != psutil.Process(server.pid).uids().real


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_LEFT = """
import sys
from turnwire.testing.postgres import running_postgres
with running_postgres(durable=False) as server:
    print(server.pid, server.folder, flush=True)
    sys.stdin.read()
"""


def test_it_ends_with_the_process_that_began_it():
    environ = os.environ | {"PYTHONPATH": f"{ROOT / 'services'}"}
    command = [sys.executable, "-c", _LEFT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, env=environ, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        running = psutil.Process(int(pid))
        process.kill()
    assert [] == psutil.wait_procs([running], timeout=30)[1]
    subprocess.run(["rm", "-rf", Path(folder)], check=True)
