"""`turnwire doctor`: what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turnwire.cli.options import json_option, settings_options
from turnwire.cli.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from turnwire.cli.checks.finding import Finding

_COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command()
@settings_options
@json_option
def doctor(config_file: Path | None, data_dir: Path | None, port_offset: int | None, as_json: bool) -> None:
    """Find out what is wrong, and what to do.

    Looks at this machine, the settings, what is stored, and the mesh, if one runs: it is asked one short question, and
    the time to the first token is told. Exit codes: 0 all well, 1 there is a problem; notes are no problems.
    """
    report = _Report(as_json)
    for finding in _here(config_file, data_dir, port_offset, report):
        report.take(finding)
    asyncio.run(_mesh(report))
    report.end()
    sys.exit(1 if report.problems else 0)


class _Report:
    """Shows findings as they come, or all of them as JSON at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._findings: list[Finding] = []
        self.figures: dict[str, float] = {}
        self.mesh: dict[str, Any] | None = None

    @property
    def problems(self) -> int:
        return sum(1 for finding in self._findings if finding.state == "problem")

    def take(self, finding: Finding) -> None:
        self._findings.append(finding)
        if self._as_json:
            return
        state = click.style(f"{finding.state:<8}", fg=_COLOURS[finding.state])
        click.echo(f"{state} {finding.check}: {finding.said}")
        if finding.todo and finding.state != "ok":
            click.echo(f"         → {finding.todo}")

    def end(self) -> None:
        if self._as_json:
            told = {"ok": not self.problems, "findings": [asdict(each) for each in self._findings], **self.figures}
            click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        elif self.problems:
            click.echo(f"{self.problems} problem{'s' if self.problems > 1 else ''} found")
        else:
            click.echo("no problems found")


def _here(
    config_file: Path | None, data_dir: Path | None, port_offset: int | None, report: _Report
) -> Iterator[Finding]:
    """Yields what is found on this machine."""
    from turnwire.cli.checks import engine, machine, state
    from turnwire.cli.provider_checks import CHECKS
    from turnwire.cli.run_file import resolved_here, running_mesh_of

    yield machine.python()

    found, settings = state.settings_file(
        config_file, lambda: resolved_here(config_file, data_dir, port_offset, checks=CHECKS)
    )
    yield found
    mesh = report.mesh = running_mesh_of(settings)
    # The addresses of the mesh are looked up there, wherever the command was called.
    os.environ["TURNWIRE_DATA_DIR"] = str(settings.data_dir)
    yield machine.data_disk(settings)
    if mesh is None:
        yield machine.ports(settings)
    yield state.stores(settings, _processes(mesh))
    if settings.artifacts.url != "folder":
        yield state.artifacts(settings)
    lacking = engine.library(settings)
    yield lacking
    if lacking.state == "ok":
        yield engine.weights(settings)
        yield machine.weights_disk(engine.pulled_names(settings))
        if mesh is None:
            yield engine.memory(settings)
    yield engine.hub()
    yield machine.user_namespaces()


async def _mesh(report: _Report) -> None:
    """Takes what is found about the mesh that runs."""
    async for finding in _of_mesh(report):
        report.take(finding)


async def _of_mesh(report: _Report) -> AsyncIterator[Finding]:
    from turnwire.cli.checks import mesh
    from turnwire.cli.checks.finding import Finding
    from turnwire.cli.connecting import connected

    names = _expected(report.mesh)
    if not names:
        yield Finding("mesh", "note", "none runs here", "`turnwire up` starts one")
        return
    off: dict[str, str] = (report.mesh or {}).get("off", {})
    for finding in mesh.switched_off(off):
        yield finding
    names = [name for name in names if name not in off]
    async with connected() as client:
        found = await mesh.services(client, names)
        yield found
        if "agent" not in names or found.state == "problem":
            return
        known = await mesh.key(client)
        yield known
        if known.state == "problem":
            return
        yield await mesh.providers(client)
        answered, report.figures = await mesh.first_token(client)
        yield answered


def _processes(mesh: dict[str, Any] | None) -> frozenset[int]:
    return frozenset(int(pid) for pid in mesh["children"].values()) if mesh is not None else frozenset()


def _expected(mesh: dict[str, Any] | None) -> list[str]:
    """Returns the services that should answer: those that the environment names, or of the mesh that runs here."""
    named = [name for name in SERVICES if os.environ.get(f"TURNWIRE_{name.upper()}_ADDRESS")]
    return named or (list(SERVICES) if mesh is not None else [])
