"""`turnwire up`: the mesh on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnwire.cli.options import resolved, settings_options
from turnwire.cli.run_file import read_run_file, run_file_of, running_mesh_of
from turnwire.cli.supervision import READY_SECONDS, Mesh, MeshFailed

if TYPE_CHECKING:
    from turnwire.runtime.settings import Settings


@click.command()
@click.option("--detach", is_flag=True, help="Return when the mesh is up; `turnwire down` stops it.")
@click.option("--all-in-one", is_flag=True, help="All services in one process.")
@settings_options
def up(
    detach: bool, all_in_one: bool, config_file: Path | None, data_dir: Path | None, port_offset: int | None
) -> None:
    """Start the mesh: each service a process on this machine.

    Ctrl-C, or `turnwire down`, stops it; what it keeps stays in the data directory.

    Exit codes: 0 it ran (with --detach: it is up), 1 it could not start, 2 wrong usage.
    """
    from turnwire.cli.provider_checks import CHECKS

    settings = resolved(config_file, data_dir, port_offset, checks=CHECKS)
    arguments = _arguments(config_file, data_dir, port_offset)
    if detach:
        _detached(settings, [*arguments, *(["--all-in-one"] if all_in_one else [])])
        return
    begun = time.monotonic()
    mesh = Mesh(settings, arguments, all_in_one)
    try:
        mesh.start()
    except MeshFailed as error:
        raise click.ClickException(str(error)) from None
    _greet(settings, time.monotonic() - begun)
    try:
        mesh.watch()
    finally:
        click.echo("stopping", err=True)
        mesh.stop()


def _arguments(config_file: Path | None, data_dir: Path | None, port_offset: int | None) -> list[str]:
    arguments: list[str] = []
    if config_file is not None:
        arguments += ["--config", str(config_file)]
    if data_dir is not None:
        arguments += ["--data-dir", str(data_dir)]
    if port_offset is not None:
        arguments += ["--port-offset", str(port_offset)]
    return arguments


def _detached(settings: Settings, arguments: list[str]) -> None:
    """Starts `turnwire up` in a session of its own and waits until it is up."""
    begun = time.monotonic()
    running = running_mesh_of(settings)
    if running is not None:
        raise click.ClickException(f"a mesh runs already (process {running['pid']}): `turnwire down` stops it.")
    logs = settings.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "turnwire.cli.main", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ,
        )
    try:
        _wait(settings, process, log)
    except BaseException:
        process.terminate()
        raise
    _greet(settings, time.monotonic() - begun)
    click.echo(f"logs in {logs}; `turnwire down` stops it")


def _wait(settings: Settings, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the mesh of `process` is up."""
    deadline = time.monotonic() + READY_SECONDS + 5
    while True:
        running = read_run_file(run_file_of(settings))
        if running is not None and running["pid"] == process.pid:
            return
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace").strip().removeprefix("Error: ")
            raise click.ClickException(text or f"the mesh did not start; logs: {log.parent}")
        time.sleep(0.05)


def _greet(settings: Settings, seconds: float) -> None:
    from turnwire.cli.services import SERVICES, edge

    click.echo(f"The mesh is up ({seconds:.1f} s).")
    for name in SERVICES:
        click.echo(f"  {name.replace('_', ' '):<16} {settings.address(name)}")
    for name in edge():
        scheme = "http" if settings.tls.certificate is None else "https"
        click.echo(f"  {'console':<16} {scheme}://{settings.address(name)}/")
    command = f"{_variable(settings)}{'./dev turnwire' if Path('dev').is_file() else 'turnwire'}"
    click.echo("Try:")
    click.echo(f'  {command} ask "What is gRPC?"')
    click.echo(f"  {command} chat")
    click.echo(f"  {command} status")
    _warn(settings)


def _variable(settings: Settings) -> str:
    """Returns what a command needs before it to find the mesh: nothing, where it is found by its folder."""
    from turnwire.client import find_mesh

    found = find_mesh()
    data_dir = str(settings.data_dir.resolve())
    return "" if found is not None and found.get("data_dir") == data_dir else f"TURNWIRE_DATA_DIR={data_dir} "


def _warn(settings: Settings) -> None:
    """Says what will not work although the mesh is up: running code, and models that cannot be loaded."""
    from turnwire.cli.checks import engine

    mesh = read_run_file(run_file_of(settings)) or {}
    for why in mesh.get("off", {}).values():
        click.echo(f"But code_interpreter is off. {why}", err=True)
    for check in (engine.library, engine.weights):
        finding = check(settings)
        if finding.state == "problem":
            click.echo(f"But {finding.said}.\n  → {finding.todo} (the mesh can stay up)", err=True)
            return
