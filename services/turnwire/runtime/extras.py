"""Packages of an extra, imported where a setting asks for them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class ExtraMissing(Exception):
    """A setting needs a package that is not installed."""

    def __init__(self, setting: str, package: str, extra: str) -> None:
        """Names the setting, the package, and both ways out."""
        super().__init__(
            f"`{setting}` needs the package {package}: install `turnwire[{extra}]`, or change the setting."
        )
        self.setting = setting


def imported(module: str, *, setting: str, extra: str = "observability") -> Any:
    """Returns a module that needs packages of an extra.

    Raises:
        ExtraMissing: a package of it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ExtraMissing(setting, error.name or module, extra) from None
