"""The source of the services as the tests of failpoints read it: what is declared, reached, committed and called."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, cast

from google.protobuf import descriptor_pool

from turnwire.runtime.failpoints import Boundary, Failpoint

SERVICES = ("agent", "inference", "safety", "memory", "tool_executor", "sandbox_runner")
_ROOT = Path(__file__).resolve().parents[2] / "services"
_DECLARES = frozenset({"Failpoint", "Boundary"})
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """A piece of code, with all that stands around it, from the module on."""

    node: ast.AST
    around: tuple[ast.AST, ...]

    @property
    def function(self) -> Function | None:
        """The innermost function around it."""
        return next((each for each in reversed(self.around) if isinstance(each, Function)), None)

    @property
    def name(self) -> str:
        """The functions and classes around it, as `Journal.ended`."""
        named = [each.name for each in self.around if isinstance(each, Function | ast.ClassDef)]
        return ".".join(named)


@dataclass
class Module:
    """A module of a service."""

    path: str
    """As `agent/live/lease.py`."""
    name: str
    tree: ast.Module
    places: list[Place] = field(default_factory=list[Place])

    @property
    def constants(self) -> dict[str, ast.expr]:
        """The constants that declare failpoints, with what they are given."""
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and _declares(node.value):
                found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        return found

    @property
    def hits(self) -> list[Place]:
        """Where the module reaches failpoints: `….reached()`, and `async with` a boundary."""
        return [place for place in self.places if self.roots(place)]

    def roots(self, place: Place) -> set[str]:
        """Returns the constants that a piece of code reaches; empty for one that reaches none."""
        if isinstance(place.node, ast.AsyncWith):
            expressions = [
                item.context_expr for item in place.node.items if not isinstance(item.context_expr, ast.Call)
            ]
        elif is_hit(place.node):
            expressions = [cast("ast.Attribute", cast("ast.Call", place.node).func).value]
        else:
            return set()
        named = {node.id for each in expressions for node in ast.walk(each) if isinstance(node, ast.Name)}
        return named & self.constants.keys()

    def guarded(self, place: Place) -> bool:
        """True when a piece of code lies within a boundary: it has a failpoint before it and one after it."""
        for each in place.around:
            if isinstance(each, ast.AsyncWith):
                if self.roots(Place(each, ())):
                    return True
                calls = [item.context_expr for item in each.items if isinstance(item.context_expr, ast.Call)]
                if any(isinstance(call.func, ast.Name) and call.func.id == "committing" for call in calls):
                    return True
        return False

    @property
    def commits(self) -> list[Place]:
        """Where the module has its store write: also by a `_write` of its own, which stands for its callers."""
        direct = [place for place in self.places if _is_call(place.node, "self._store.write", "store.write")]
        own = [place for place in direct if place.function is not None and place.function.name == "_write"]
        if not own:
            return direct
        return [place for place in self.places if _is_call(place.node, "self._write")] + [
            place for place in direct if place not in own
        ]

    def calls(self, methods: Iterable[str]) -> list[tuple[str, Place]]:
        """Returns where the module calls one of these methods of other services."""
        wanted = frozenset(methods)
        return [
            (place.node.func.attr, place)
            for place in self.places
            if isinstance(place.node, ast.Call)
            and isinstance(place.node.func, ast.Attribute)
            and place.node.func.attr in wanted
        ]

    def names_of(self, constant: str) -> set[str]:
        """Returns the names of the failpoints that a constant holds."""
        return _names(vars(importlib.import_module(self.name))[constant])


def is_hit(node: ast.AST) -> bool:
    """True for `….reached()`; what takes arguments is something else."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "reached"
        and not node.args
    )


@cache
def modules() -> dict[str, Module]:
    """Returns all modules of the services, imported: what they declare is declared by now."""
    found: dict[str, Module] = {}
    for service in SERVICES:
        for path in sorted((_ROOT / "turnwire" / service).rglob("*.py")):
            if "_pb2" not in path.name:
                relative = path.relative_to(_ROOT)
                module = _read(path, ".".join(relative.with_suffix("").parts), str(relative.relative_to("turnwire")))
                found[module.path] = module
    for module in found.values():
        if module.constants or _declares(module.tree):
            importlib.import_module(module.name)
    return found


def parsed(path: str, text: str) -> Module:
    """Returns a module that is not there, to see what is found in it."""
    return _filled(Module(path, "", ast.parse(text)))


@cache
def methods() -> dict[str, str]:
    """Returns the methods of the services by their full name, as `turnwire.safety.v1.SafetyService/RunShields`."""
    pool = descriptor_pool.Default()
    found: dict[str, str] = {}
    for service in SERVICES:
        for path in sorted((_ROOT / "turnwire" / service / "v1").glob("*_pb2.py")):
            importlib.import_module(f"turnwire.{service}.v1.{path.stem}")
            proto: Any = pool.FindFileByName(f"turnwire/{service}/v1/{path.stem.removesuffix('_pb2')}.proto")
            for each in proto.services_by_name.values():
                found |= {f"{each.full_name}/{name}": f"{service}.{name}" for name in each.methods_by_name}
    return found


def _read(path: Path, name: str, short: str) -> Module:
    return _filled(Module(short, name, ast.parse(path.read_text(encoding="utf-8"))))


def _filled(module: Module) -> Module:
    def walk(node: ast.AST, around: tuple[ast.AST, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            module.places.append(Place(child, around))
            walk(child, (*around, child))

    walk(module.tree, ())
    return module


def _declares(node: ast.AST) -> bool:
    wanted = _DECLARES | {"declare_methods"}
    return any(
        isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in wanted
        for each in ast.walk(node)
    )


def _is_call(node: ast.AST, *functions: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in functions


def _names(value: object) -> set[str]:
    match value:
        case Failpoint():
            return {value.name}
        case Boundary():
            return {value.before.name, value.after.name}
        case dict():
            return {name for each in cast("dict[object, object]", value).values() for name in _names(each)}
        case _:
            return set()
