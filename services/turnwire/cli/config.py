"""`turnwire config`: the settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

_SECRET_WORDS = ("key", "secret", "password", "token", "authorization")
_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@/\s]+@")
_PASSWORD_ASKED = re.compile(r"([?&](?:password|passfile|sslpassword)=)[^&\s]+")


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
    """Check a settings file, the configurations of its providers included."""
    from turnwire.cli.provider_checks import CHECKS
    from turnwire.runtime.settings import find_settings_file, load_settings

    load_settings(file, checks=CHECKS)
    found = find_settings_file(file)
    click.echo(f"{found} is good" if found is not None else "no file: the defaults hold")


@config.command()
@_file
def show(file: Path | None) -> None:
    """Print the settings in force as JSON, secrets left out."""
    from turnwire.runtime.settings import load_settings

    values = json.loads(load_settings(file).model_dump_json())
    click.echo(json.dumps(_hidden(values), indent=2))


def _hidden(value: Any, key: str = "") -> Any:
    """Returns values with `***` in place of secrets: those named so, and the passwords within addresses."""
    if isinstance(value, dict):
        return {name: _hidden(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if any(word in key.lower() for word in _SECRET_WORDS):
        return "***"
    return _PASSWORD_ASKED.sub(r"\1***", _PASSWORD.sub(r"\1***@", value))
