"""The interpreter that model-written code runs in: it keeps its variables from one run to the next."""

from __future__ import annotations

import ast
import builtins
import contextlib
import datetime
import io
import itertools
import json
import linecache
import math
import os
import random
import statistics
import sys
import traceback
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from turnwire.sandbox_runner.interior import figures, frames

_MOST_REPR = 64 * 1024
_AT_HAND = {module.__name__: module for module in (datetime, itertools, math, random, statistics)} | {
    name: function for name, function in vars(math).items() if not name.startswith("_") and name != "pow"
}
"""Modules and functions that code finds imported: small models forget to."""


def serve(commands: int, results: int) -> None:
    """Runs what comes, until the pipe ends."""
    own = os.getpid()
    module = ModuleType("__main__")
    module.__dict__.update(_AT_HAND)
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    builtins.input = _no_input
    _open_streams()
    sys.path.insert(0, "")
    frames.write(results, frames.message(frames.READY, {}))
    while (command := frames.read(commands)) is not None:
        values, code = frames.opened(command[1])
        outcome = run(module.__dict__, code.decode("utf-8", "replace"), values)
        if os.getpid() != own:
            os._exit(0)  # the code has forked and let its child go on: there is one interpreter
        frames.write(results, frames.message(frames.FINISHED, outcome))


def run(variables: dict[str, Any], code: str, values: dict[str, Any]) -> dict[str, Any]:
    """Runs code; returns the value of its last expression, or the error that ended it."""
    os.environ["TURNWIRE_CALL_ID"] = values["call_id"]
    name = f"<cell {values['cell']}>"
    outcome: dict[str, Any] = {"value": "", "error": ""}
    # So that a traceback shows the lines.
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        try:
            outcome["value"] = _evaluate(code, name, variables)
        finally:
            # Also those that were drawn before an error.
            figures.save_open()
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            outcome["error"] = f"SystemExit: {leaving.code}"
            sys.stderr.write(f"SystemExit: {leaving.code}\n")
    except BaseException as error:
        outcome["error"] = _tell(error, name)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the code may have closed or replaced it
            stream.flush()
    return outcome


def _parsed(code: str, name: str) -> ast.Module:
    """Small models close the JSON around their code within the code too; nothing else that fails is guessed at."""
    try:
        return ast.parse(code, name)
    except SyntaxError:
        for closing in ("}", '"}'):
            shorter = code.rstrip().removesuffix(closing)
            if shorter != code.rstrip():
                with contextlib.suppress(SyntaxError):
                    return ast.parse(shorter, name)
        raise  # what is told is what is wrong with the code as it came


def _evaluate(code: str, name: str, variables: dict[str, Any]) -> str:
    tree = _parsed(code, name)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    if tree.body:
        exec(compile(tree, name, "exec", dont_inherit=True), variables)  # noqa: S102 - this is what it is for
    if not isinstance(last, ast.Expr):
        return ""
    value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), variables)  # noqa: S307 - so is this
    if value is None:
        return ""
    variables["_"] = value
    shown = repr(value)
    return shown if len(shown) <= _MOST_REPR else f"{shown[:_MOST_REPR]}… ({len(shown)} characters)"


def _tell(error: BaseException, name: str) -> str:
    """Writes the traceback, from the first line of the user's on; returns the last line of it."""
    try:
        own = error.with_traceback(_from(error.__traceback__, name))
        lines = traceback.format_exception(own)
        short = traceback.format_exception_only(own)[-1].strip()
    except Exception:
        short = type(error).__name__
        lines = [short + "\n"]
    text = "".join(lines)
    # Wherever the code has sent its standard error to.
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    frames.write(2, text.encode("utf-8", "backslashreplace"))
    return short[:2000]


def _from(found: TracebackType | None, name: str) -> TracebackType | None:
    while found is not None and found.tb_frame.f_code.co_filename != name:
        found = found.tb_next
    return found


def _no_input(prompt: object = "", /) -> NoReturn:
    raise EOFError("input() is not available: nobody can answer while code runs")


def _open_streams() -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = os.fdopen(number, "wb", closefd=False)
        text = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    nothing = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdin = nothing
    setattr(sys, "__stdin__", nothing)  # noqa: B010 - its type says it never changes


def decoded(body: bytes) -> dict[str, Any]:
    """Returns the outcome that an interpreter sent. It is the code's own: every field is checked.

    Raises:
        frames.Broken: it is none.
    """
    values, _ = frames.opened(body)
    outcome: dict[str, Any] = {}
    for key, most in (("value", _MOST_REPR + 100), ("error", 2000)):
        value = values.get(key, "")
        if not isinstance(value, str):
            raise frames.Broken(json.dumps(key))
        outcome[key] = value[:most]
    return outcome
