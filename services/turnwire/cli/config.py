"""`turnwire config`: the settings."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def config() -> None:
    """Show, check and describe the settings."""


_file = click.option("--config", "file", type=click.Path(path_type=Path), help="The settings file.")


@config.command()
def schema() -> None:
    """Print the JSON schema of a settings file."""
    from turnwire.runtime.settings import settings_schema

    click.echo(json.dumps(settings_schema(), indent=2))


@config.command()
@_file
def check(file: Path | None) -> None:
    """Check a settings file."""
    from turnwire.runtime.settings import find_settings_file, load_settings

    load_settings(file)
    found = find_settings_file(file)
    click.echo(f"{found} is good" if found is not None else "no file: the defaults hold")


@config.command()
@_file
def show(file: Path | None) -> None:
    """Print the settings in force, secrets left out."""
    from turnwire.runtime.settings import load_settings

    values = json.loads(load_settings(file).model_dump_json())
    _hide(values)
    click.echo(json.dumps(values, indent=2))


def _hide(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if (
                item
                and isinstance(item, str)
                and any(word in str(key) for word in ("key", "secret", "password", "token"))
            ):
                value[key] = "***"
            else:
                _hide(item)
    elif isinstance(value, list):
        for item in value:
            _hide(item)
