"""`turnwire down`: the end of the mesh on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from turnwire.cli.options import config_option, data_dir_option
from turnwire.cli.run_file import is_running, read_run_file, resolved_here, run_file_of

_SECONDS = 30.0


@click.command()
@data_dir_option
@config_option
def down(config_file: Path | None, data_dir: Path | None) -> None:
    """Stop the mesh of this folder, or of a folder above, and wait for its end."""
    settings = resolved_here(config_file, data_dir)
    run_file = run_file_of(settings)
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
