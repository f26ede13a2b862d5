"""All services in one process: `python -m turnwire.cli.all_in_one`, which `turnwire up --all-in-one` starts."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from turnwire.cli.options import settings_options
from turnwire.cli.serve import serve
from turnwire.cli.services import SERVICES


@click.command()
@click.option("--without", multiple=True, type=click.Choice(list(SERVICES)), help="A service to leave out; repeatable.")
@settings_options
def all_in_one(
    without: tuple[str, ...], config_file: Path | None, data_dir: Path | None, port_offset: int | None
) -> None:
    """Runs all services until SIGTERM."""
    sys.exit(serve([name for name in SERVICES if name not in without], config_file, data_dir, port_offset))


if __name__ == "__main__":
    all_in_one()
