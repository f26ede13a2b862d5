"""`turnwire store`: what the services keep, in which version, and how it is brought up to date."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.command import SOURCE, turnwire
from turnwire.cli.stores import SCHEMAS, schema_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from turnwire.testing.postgres import Postgres

    Newer = Callable[[str, int], None]


@pytest.fixture(params=["sqlite", "postgres"])
def newer(request: pytest.FixtureRequest, tmp_path: Path) -> Newer:
    """The folder of the test has settings with a store; returns what writes a version into the store of a service."""
    if request.param == "sqlite":

        def in_file(service: str, version: int) -> None:
            path = tmp_path / ".turnwire" / f"{service}.sqlite3"
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("INSERT INTO schema_version VALUES (?)", (version,))

        return in_file
    server: Postgres = request.getfixturevalue("postgres_server")
    url: str = request.getfixturevalue("postgres")
    (tmp_path / "turnwire.yaml").write_text(f"store: {{url: '{url}'}}\n", encoding="utf-8")

    def in_database(service: str, version: int) -> None:
        database = url.partition("?")[0].rpartition("/")[2]
        server.psql(f"INSERT INTO turnwire_{service}.schema_version VALUES ({version})", database)

    return in_database


def _states(folder: Path) -> dict[str, tuple[str, int]]:
    found: list[dict[str, Any]] = json.loads(turnwire("store", "status", "--json", cwd=folder).out)
    return {each["service"]: (each["state"], each["present"]) for each in found}


def test_nothing_is_there_then_all_of_it_and_a_second_time_nothing_is_done(newer: Newer, tmp_path: Path):
    assert dict.fromkeys(SCHEMAS, ("not there yet", 0)) == _states(tmp_path)
    assert 1 == turnwire("store", "migrate", "--check", cwd=tmp_path).code
    assert dict.fromkeys(SCHEMAS, ("not there yet", 0)) == _states(tmp_path)  # it was a look only
    done = turnwire("store", "migrate", cwd=tmp_path)
    assert 0 == done.code, done
    assert "agent: was brought from nothing, version" in done.out
    assert {name: ("ready", schema_of(name).version) for name in SCHEMAS} == _states(tmp_path)
    again = turnwire("store", "migrate", cwd=tmp_path)
    assert (0, 5) == (again.code, again.out.count("is up to date"))
    assert 0 == turnwire("store", "migrate", "--check", cwd=tmp_path).code


def test_named_services_alone_are_migrated(newer: Newer, tmp_path: Path):
    assert 0 == turnwire("store", "migrate", "safety", "memory", cwd=tmp_path).code
    there = {name for name, (state, _) in _states(tmp_path).items() if state == "ready"}
    assert {"safety", "memory"} == there
    assert 0 == turnwire("store", "migrate", "--check", "safety", cwd=tmp_path).code
    assert 2 == turnwire("store", "migrate", "gateway", cwd=tmp_path).code


def test_a_version_that_is_too_new_is_told_and_left(newer: Newer, tmp_path: Path):
    turnwire("store", "migrate", cwd=tmp_path)
    newer("memory", 99)
    status = turnwire("store", "status", cwd=tmp_path)
    assert 1 == status.code
    assert "too new" in status.out
    refused = turnwire("store", "migrate", cwd=tmp_path)
    assert 1 == refused.code
    assert "has schema version 99, and this Turnwire knows up to" in refused.err
    assert ("too new", 99) == _states(tmp_path)["memory"]


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path: Path):
    url = "postgresql://me:s3cret@127.0.0.1:1/turnwire"
    for words in (("store", "status"), ("store", "migrate"), ("store", "migrate", "--check"), ("agent",)):
        ended = turnwire(*words, cwd=tmp_path, env={"TURNWIRE_STORE_URL": url, "TURNWIRE_LISTEN_PORT_OFFSET": "14500"})
        assert 1 == ended.code
        assert "PostgreSQL at 127.0.0.1:1, database turnwire" in ended.err
        assert "is PostgreSQL running there" in ended.err
        assert "s3cret" not in ended.err + ended.out


def test_a_wrong_address_is_told_without_its_password(tmp_path: Path):
    ended = turnwire("store", "status", cwd=tmp_path, env={"TURNWIRE_STORE_URL": "postgresql://me:s3cret@h:99x/db"})
    assert 1 == ended.code
    assert "TURNWIRE_STORE_URL" in ended.err
    assert "encode what is special in the password" in ended.err
    assert "s3cret" not in ended.err


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@h/db", "postgresql:///db?host=h&password=s3cret&user=me"])
def test_the_settings_are_shown_without_the_password(url: str, tmp_path: Path):
    shown = turnwire("config", "show", cwd=tmp_path, env={"TURNWIRE_STORE_URL": url})
    assert "s3cret" not in shown.out
    assert "***" in json.loads(shown.out)["store"]["url"]


def test_a_package_that_is_missing_is_named(tmp_path: Path):
    absent = "raise ModuleNotFoundError(\"No module named 'asyncpg'\", name='asyncpg')\n"
    (tmp_path / "asyncpg.py").write_text(absent, encoding="utf-8")
    given = {"TURNWIRE_STORE_URL": "postgresql://db/turnwire", "PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCE}"}
    for words in (("store", "status"), ("safety", "--port-offset", "14600")):
        ended = turnwire(*words, cwd=tmp_path, env=given)
        assert 1 == ended.code
        assert "`store.url` needs the package asyncpg: install `turnwire[postgres]`" in ended.err
