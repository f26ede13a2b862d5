"""Calls written as a Python list, `[name(argument=value, …)]`, with their values turned into JSON."""

from __future__ import annotations

import ast
import json
import re

_START = re.compile(r"\s*(?:```[a-zA-Z_]*\s*)?(?=\[\s*(?:[A-Za-z_][\w.]*\s*(?:\(|$)|$))")
_LONGEST = 64 * 1024
# Models mix the words of JSON into their Python.
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


class PythonList:
    """Looks for the end of a list of calls in a text that grows."""

    def __init__(self) -> None:
        """Has looked at nothing yet."""
        self._tried = 0

    @staticmethod
    def may_begin(text: str) -> bool:
        """True when a list of calls may begin with this text."""
        return _START.match(text) is not None and len(text) < _LONGEST

    def look(self, text: str) -> tuple[int, list[tuple[str, str]]] | None:
        """Returns where the list ends and its (name, arguments); None while it goes on.

        A list of something else has no calls.
        """
        start = _START.match(text)
        assert start is not None
        end = text.find("]", max(self._tried, start.end()))
        while end >= 0:
            self._tried = end + 1
            calls = _calls(text[start.end() : end + 1])
            if calls is not None:
                return end + 1, calls
            end = text.find("]", end + 1)
        return None


def _calls(text: str) -> list[tuple[str, str]] | None:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.List):
        return []
    calls: list[tuple[str, str]] = []
    for element in tree.elts:
        call = _call(element)
        if call is None:
            return []
        calls.append(call)
    return calls


def _call(element: ast.expr) -> tuple[str, str] | None:
    if not isinstance(element, ast.Call) or element.args:
        return None
    arguments: dict[str, object] = {}
    try:
        for keyword in element.keywords:
            if keyword.arg is None:
                return None
            arguments[keyword.arg] = ast.literal_eval(_Words().visit(keyword.value))
        return ast.unparse(element.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


class _Words(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node
