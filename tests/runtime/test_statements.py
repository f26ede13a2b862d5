"""Every statement of every service does the same on SQLite and on PostgreSQL.

The functions of the services' `store` packages are called with values made for their types, in one order on both: first
what inserts, then the rest, and all of it a second time, with what is there by then. A function that is added is found.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import time
import types
import typing
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.cli.stores import SCHEMAS, schema_of
from turnwire.runtime.storage import SqliteStore
from turnwire.runtime.storage.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from turnwire.runtime.storage import Store

_LARGE = 2**40
"""No integer of 32 bits, which PostgreSQL takes a placeholder for where it may choose."""
_HOUR = 3_600_000_000


class _Enum:
    """The type of a number of an enum of the contract."""


@pytest.mark.parametrize("service", list(SCHEMAS))
async def test_the_statements_of_a_service(service: str, tmp_path: Path, postgres: str):
    functions = dict(_functions(service))
    assert functions
    schema = schema_of(service)
    sqlite = await SqliteStore.open(tmp_path / "s.sqlite3", schema)
    other = await PostgresStore.open(postgres, schema)
    try:
        ran = 0
        for _ in range(2):
            for name, function in sorted(functions.items(), key=lambda item: "insert" not in item[0]):
                for arguments in _calls(function):
                    expected = await _outcome(sqlite, function, arguments)
                    assert expected == await _outcome(other, function, arguments), f"{name} {arguments}"
                    ran += expected[0] == "returned"
        assert ran >= len(functions), "most of it was refused"
    finally:
        await sqlite.close()
        await other.close()


def _functions(service: str) -> Iterator[tuple[str, Any]]:
    package = importlib.import_module(f"turnwire.{service}.store")
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction):
            if function.__module__ == module.__name__ and next(iter(inspect.signature(function).parameters)) == "tx":
                yield f"{found.name}.{name}", function


async def _outcome(store: Store, function: Any, arguments: dict[str, Any]) -> tuple[str, Any]:
    async def unit(tx: Any) -> Any:
        return await function(tx, **arguments)

    try:
        return "returned", _settled(await store.write(unit))
    except Exception as error:
        names = {"IntegrityError": "a constraint", "UniqueViolationError": "a constraint"}
        return "raised", names.get(type(error).__name__, f"{type(error).__name__}: {error}")


def _settled(value: Any) -> Any:
    """Returns a value in which the present time, which each store has its own of, is one."""
    now = time.time_ns() // 1_000
    if isinstance(value, list | tuple):
        return [_settled(each) for each in typing.cast("list[Any]", value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_settled(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return "now" if isinstance(value, int) and abs(value - now) < 2 * _HOUR else value


def _calls(function: Any) -> list[dict[str, Any]]:
    """Returns arguments for a function: all values there, then without those that may be missing."""
    hints = _hints(function)
    names = [name for name in inspect.signature(function).parameters if name != "tx"]
    full = {name: _made(hints[name], name) for name in names}
    bare = {name: None if _optional(hints[name]) else full[name] for name in names}
    return [full] if bare == full else [full, bare]


def _hints(of: Any) -> dict[str, Any]:
    """Returns the types of the parameters or fields, also those that are imported for the type checker alone."""
    module = importlib.import_module(of.__module__)
    names = dict(vars(module))
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {each.name: getattr(importlib.import_module(node.module), each.name) for each in node.names}
    hints = typing.get_type_hints(of, names)
    # At run time the numbers of an enum of the contract are like any other.
    return hints | {name: _Enum for name, said in of.__annotations__.items() if "ValueType" in str(said)}


def _optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in hint.__args__


def _made(hint: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        return _made(next(each for each in hint.__args__ if each is not type(None)), name)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return typing.get_args(hint)[0]
    if origin is tuple:
        return tuple(_made(each, name) for each in typing.get_args(hint) if each is not Ellipsis)
    if origin is not None:
        return [_made(typing.get_args(hint)[0], name)]
    if hint is _Enum:
        return 2
    simple: dict[Any, Any] = {str: name[:20], bool: True, int: _LARGE, float: 0.5, bytes: b"\x00\xff"}
    if hint in simple:
        # Texts that a function knows by heart, as the kinds of its own constants.
        return "deleted" if name == "kind" else simple[hint]
    if inspect.isclass(hint) and issubclass(hint, Message):
        return _message(hint)
    if dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return hint(**{field.name: _made(hints[field.name], field.name) for field in dataclasses.fields(hint)})
    raise TypeError(f"no value is known for {name}: {hint}")


def _message(kind: type[Message]) -> Message:
    message = kind()
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, str):
            setattr(message, field.name, field.name[:20])
        elif isinstance(value, Timestamp):
            value.FromMicroseconds(_LARGE)
    return message
