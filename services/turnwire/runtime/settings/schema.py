"""The JSON schema of a settings file, with what is written below each field as its description."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

from turnwire.runtime.settings.models import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel


def settings_schema() -> dict[str, Any]:
    """Returns the JSON schema of a settings file."""
    schema = Settings.model_json_schema()
    # Pydantic could do that as well, but would read the sources whenever a process starts.
    for model in _sections():
        part = schema if model is Settings else schema["$defs"][model.__name__]
        for name, text in _texts(model).items():
            part["properties"][name]["description"] = text
    return schema


def _sections() -> list[type[BaseModel]]:
    section: type[BaseModel] = Settings.__mro__[1]  # what all sections are
    return section.__subclasses__()


def _texts(model: type[BaseModel]) -> dict[str, str]:
    """Returns the strings below the fields that a class has."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = inspect.cleandoc(text)
            case _:
                pass
    return texts
