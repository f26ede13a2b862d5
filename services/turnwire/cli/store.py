"""`turnwire store`: the databases of the services."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnwire.cli.options import asynchronous, config_option, data_dir_option, json_option
from turnwire.cli.stores import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.cli.stores import Kept

_services = click.argument("services", nargs=-1, type=click.Choice(list(SCHEMAS)))


@click.group()
def store() -> None:
    """Show the databases of the services, and bring them up to date."""


@store.command()
@_services
@data_dir_option
@config_option
@json_option
@asynchronous
async def status(config_file: Path | None, data_dir: Path | None, as_json: bool, services: tuple[str, ...]) -> None:
    """Show where each service keeps its state, and in which version.

    Exit codes: 0 each can be used, 1 one is too new for this Turnwire or cannot be reached.
    """
    from turnwire.cli.run_file import resolved_here
    from turnwire.cli.stores import look

    found = await look(resolved_here(config_file, data_dir), services or tuple(SCHEMAS))
    _show(found, as_json)
    sys.exit(1 if any(each.state == "too new" for each in found) else 0)


@store.command()
@_services
@data_dir_option
@config_option
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when there is something to be done.")
@json_option
@asynchronous
async def migrate(
    config_file: Path | None, data_dir: Path | None, check: bool, as_json: bool, services: tuple[str, ...]
) -> None:
    """Bring the databases of the services up to date, all of them or those that are named.

    Services do so themselves when they start. This does it before, as one step of a roll-out, by a user who may create
    tables. On SQLite the mesh is stopped first. Exit codes: 0 all is up to date, 1 with --check: something is to be
    done; otherwise: one could not be brought up to date.
    """
    from turnwire.cli.run_file import resolved_here
    from turnwire.cli.stores import look
    from turnwire.cli.stores import migrate as bring_up_to_date

    settings = resolved_here(config_file, data_dir)
    names = services or tuple(SCHEMAS)
    before = await look(settings, names)
    if check:
        _show(before, as_json)
        sys.exit(0 if all(each.state == "ready" for each in before) else 1)
    for each in before:
        if each.state != "ready":
            await bring_up_to_date(settings, each.service)
    after = await look(settings, names)
    if as_json:
        _show(after, as_json)
        return
    for old, new in zip(before, after, strict=True):
        done = "is up to date" if old.present == new.present else f"was brought from {old.present or 'nothing'}"
        click.echo(f"{new.service}: {done}, version {new.present} ({new.where})")


def _show(found: Sequence[Kept], as_json: bool) -> None:
    from turnwire.cli.printing import print_table

    if as_json:
        click.echo(json.dumps([asdict(each) | {"state": each.state} for each in found], indent=2))
    else:
        rows = [(each.service, each.state, each.present, each.known, each.where) for each in found]
        print_table(("service", "state", "version", "known", "where"), rows)
