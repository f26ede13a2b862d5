"""One settings file, with `${env.NAME:default}` inside and the environment on top."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from turnwire.runtime.settings.errors import SettingsError
from turnwire.runtime.settings.models import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FILE = "turnwire.yaml"
_VARIABLE = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")
_PREFIX = "TURNWIRE_"
Place = tuple[str | int, ...]
"""The keys and indices that lead to a value."""
Check = Callable[[Settings], Iterable[tuple[Place, str]]]
"""Looks at settings that are of the right form; returns what is wrong where."""
_Lines = dict[Place, int]
_DEEPEST = 50


def find_settings_file(path: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the settings file: the named one, `TURNWIRE_CONFIG`, `./turnwire.yaml` if it is there, or None."""
    if path is not None:
        return path
    named = environ.get("TURNWIRE_CONFIG")
    if named:
        return Path(named)
    return Path(_FILE) if Path(_FILE).is_file() else None


def load_settings(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, *, checks: Sequence[Check] = ()
) -> Settings:
    """Returns the settings of a file and the environment.

    Each field has a variable: `TURNWIRE_` and its path in capitals, as `TURNWIRE_LISTEN_PORT_OFFSET`. Lists and
    mappings are written as JSON. `checks` look at what only a service knows, as the configuration of its providers.

    Raises:
        SettingsError: with the key, the line, and what was expected.
    """
    file = find_settings_file(path, environ)
    values: dict[str, Any] = {}
    lines: _Lines = {}
    source = str(file) if file is not None else "the settings"
    if file is not None:
        values, lines = _read(file, environ)
    origins = _overlay(values, environ)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _refused(error, source, lines, origins) from None
    for check in checks:
        for place, expected in check(settings):
            raise _at(place, expected, source, lines, origins)
    return settings


def _read(file: Path, environ: Mapping[str, str]) -> tuple[dict[str, Any], _Lines]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(file), "", f"cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values: Any = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise SettingsError(str(file), "", f"is no YAML: {error.problem}", line=line) from None
    except yaml.YAMLError as error:  # a character that no YAML has
        raise SettingsError(str(file), "", f"is no YAML: {error.__class__.__name__}") from None
    except RecursionError:
        raise SettingsError(str(file), "", "is nested too deep") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise SettingsError(str(file), "", "is a mapping of sections, as `store:`", line=1)
    lines: _Lines = {}
    for place, line in _marks(node, ()):
        if place in lines:
            raise SettingsError(str(file), _dotted(place), f"is there twice, first in line {lines[place]}", line=line)
        if len(place) > _DEEPEST:
            raise SettingsError(str(file), "", "is nested too deep", line=line)
        lines[place] = line
    return _interpolated(values, (), str(file), lines, environ), lines


def _marks(node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            yield inner, key.start_mark.line + 1
            yield from _marks(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*path, index)
            yield inner, value.start_mark.line + 1
            yield from _marks(value, inner)


def _interpolated(
    value: Any, path: tuple[str | int, ...], source: str, lines: _Lines, environ: Mapping[str, str]
) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _interpolated(item, (*path, str(key)), source, lines, environ)
            for key, item in value.items()  # pyright: ignore[reportUnknownVariableType] - what YAML gave
        }
    if isinstance(value, list):
        return [
            _interpolated(item, (*path, index), source, lines, environ)
            for index, item in enumerate(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        ]
    if not isinstance(value, str) or "${env." not in value:
        return value

    def replaced(match: re.Match[str]) -> str:
        name: str = match[1]
        default: str | None = match[2]
        found = environ.get(name, default)
        if found is None:
            key = _dotted(path)
            raise SettingsError(
                source,
                key,
                f"the environment variable {name} is not set, and there is no default",
                line=lines.get(path),
            )
        return found

    text = _VARIABLE.sub(replaced, value)
    whole = _VARIABLE.fullmatch(value) is not None
    # Text stays text: fields that are numbers read it, and a key that consists of digits stays a key.
    return None if whole and text == "null" else text


def _overlay(values: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Puts variables over values; returns the variable of each path that has one."""
    origins: dict[tuple[str, ...], str] = {}
    for path in _fields(Settings, ()):
        name = _PREFIX + "_".join(path).upper()
        text = environ.get(name)
        if text is None:
            continue
        target = values
        for part in path[:-1]:
            if target.get(part) is None:
                target[part] = {}
            inner = target[part]
            if not isinstance(inner, dict):
                break  # the file has it wrong, and is told so
            target = inner
        else:
            target[path[-1]] = _parsed(text)
            origins[path] = name
    return origins


def _fields(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        inner = next(
            (
                each
                for each in (annotation, *get_args(annotation))
                if isinstance(each, type) and issubclass(each, BaseModel)
            ),
            None,
        )
        if inner is annotation and inner is not None:
            yield from _fields(inner, (*path, name))
        else:
            yield (*path, name)


def _parsed(text: str) -> Any:
    if text[:1] in {"[", "{"}:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _refused(error: ValidationError, source: str, lines: _Lines, origins: dict[tuple[str, ...], str]) -> SettingsError:
    path, expected = problems_of(error, Settings)[0]
    return _at(path, expected, source, lines, origins)


def _at(path: Place, expected: str, source: str, lines: _Lines, origins: dict[tuple[str, ...], str]) -> SettingsError:
    for length in range(len(path), 0, -1):
        variable = origins.get(tuple(str(part) for part in path[:length]))
        if variable is not None:
            if expected in {"is a list", "is a mapping"} and length == len(path):
                expected += ", written as JSON"
            return SettingsError(f"the environment variable {variable}", _dotted(path), expected)
    line = next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)
    return SettingsError(source, _dotted(path), expected, line=line)


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[tuple[Place, str]]:
    """Returns what `model` found wrong, in words, unknown settings first: a misspelt one is often a missing one too."""
    problems = error.errors(include_url=False, include_input=False)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    return [
        (place := tuple(part for part in problem["loc"] if part != "[key]"), _expected(problem, place, model))
        for problem in problems
    ]


def _expected(problem: Any, place: Place, model: type[BaseModel]) -> str:
    match problem["type"]:
        case "extra_forbidden":
            return f"is no setting{_did_you_mean(place, model)}"
        case "missing":
            return "is required"
        case "model_type" | "dict_type":
            return "is a mapping"
        case "list_type":
            return "is a list"
        case _:
            told: str = problem["msg"]
            return told.removeprefix("Value error, ")


def _did_you_mean(path: Place, root: type[BaseModel]) -> str:
    model: Any = root
    for part in path[:-1]:
        model = _inner(model, part)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    near = difflib.get_close_matches(str(path[-1]), list(model.model_fields), n=1)
    there = ", ".join(model.model_fields)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {there}"


def _inner(model: Any, part: str | int) -> Any:
    """Returns the type of a field of a model, or of an item of a list or mapping."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        field = model.model_fields.get(str(part))
        return field.annotation if field is not None else None
    items: tuple[Any, ...] = get_args(model)
    return items[-1] if items else None


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
