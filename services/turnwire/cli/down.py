"""`turnwire down`: the end of the mesh on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from turnwire.cli.options import resolved, settings_options
from turnwire.cli.supervision import is_running, read_run_file

_SECONDS = 30.0


@click.command()
@settings_options
def down(config_file: Path | None, data_dir: Path | None, port_offset: int | None) -> None:
    """Stop the mesh that `up --detach` started, and wait for its end."""
    settings = resolved(config_file, data_dir, port_offset)
    run_file = settings.data_dir / "run" / "mesh.json"
    mesh = read_run_file(run_file)
    if mesh is None or not is_running(mesh):
        run_file.unlink(missing_ok=True)
        click.echo(f"no mesh runs with its data in {settings.data_dir}")
        return
    os.kill(int(mesh["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + _SECONDS
    while is_running(mesh):
        if time.monotonic() > deadline:
            raise click.ClickException(f"the process {mesh['pid']} does not end; look at {settings.data_dir}/logs")
        time.sleep(0.05)
    click.echo("stopped")
