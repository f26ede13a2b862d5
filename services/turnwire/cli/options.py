"""Options that several commands share."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from turnwire.runtime.settings import Check, Settings


config_option = click.option("--config", "config_file", type=click.Path(path_type=Path), help="The settings file.")
data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where state and logs lie. [.turnwire]"
)
_port_offset_option = click.option("--port-offset", type=click.IntRange(0, 15_000), help="Moves all ports by so much.")


def settings_options(command: Any) -> Any:
    """Adds `--config`, `--data-dir` and `--port-offset`."""
    for option in (_port_offset_option, data_dir_option, config_option):
        command = option(command)
    return command


def resolved(
    config_file: Path | None, data_dir: Path | None, port_offset: int | None, *, checks: Sequence[Check] = ()
) -> Settings:
    """Returns the settings of a command line: its options go before the environment and the file.

    `checks` look at what only a service knows, as the configurations of its providers.
    """
    from turnwire.runtime.settings import load_settings

    settings = load_settings(config_file, checks=checks)
    if data_dir is not None:
        settings = settings.model_copy(update={"data_dir": data_dir})
    if port_offset is not None:
        listen = settings.listen.model_copy(update={"port_offset": port_offset})
        settings = settings.model_copy(update={"listen": listen})
    return settings


def asynchronous(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Makes a command out of a coroutine function."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return run


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of the contract.")
