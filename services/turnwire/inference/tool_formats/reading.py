"""Tool calls, read out of a text while it is being written.

Models write calls in many dresses: a bare JSON object, one in a Markdown fence, in `<tool_call>` tags, several in a row
or in a list, `<function=name>{…}</function>`, `[name(argument=value)]`. Text that could still become a call is held
back; what turns out to be none is released as the text it is. Text that was released never turns into a call.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.inference.tool_formats.python_lists import PythonList
from turnwire.inference.tool_formats.scanning import JsonScanner
from turnwire.inference.v1 import inference_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    Piece = inference_service_pb2.ChatCompletionResponse

_OPENERS = ("```", "<tool_call>", "<function=")
_WRAP = r"\s*(?:```[a-zA-Z_]*\s*|<tool_call>\s*)?\[?\s*"
# The header of a call: everything before its arguments.
_JSON_HEADER = re.compile(
    _WRAP + r'\{\s*"(?:name|function)"\s*:\s*"(?P<name>[^"\\]{1,128})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_TAG_HEADER = re.compile(r"\s*(?:<tool_call>\s*)?<function=(?P<name>[A-Za-z0-9_.-]{1,128})>\s*(?=\{)")
_JSON_START = re.compile(_WRAP + r"(?=\{)")
_TAG_EMPTY = re.compile(r"\s*(?:<tool_call>\s*)?<function=(?P<name>[A-Za-z0-9_.-]{1,128})>\s*</function>")
# What a call that broke off begins with.
_CUT = (
    re.compile(
        _WRAP + r'\{\s*(?:"(?:type|id)"\s*:\s*"[^"]*"\s*,\s*)*(?:"function"\s*:\s*\{\s*)?'
        r'"(?:name|function)"\s*:\s*"(?P<name>[^"\\]{1,128})"'
    ),
    re.compile(
        _WRAP + r'\{\s*"(?:arguments|parameters)"\s*:.*"(?:name|function)"\s*:\s*"(?P<name>[^"\\]{1,128})"', re.DOTALL
    ),
    re.compile(r"\s*(?:<tool_call>\s*)?<function=(?P<name>[A-Za-z0-9_.-]{1,128})>"),
    re.compile(r"\s*(?:```[a-zA-Z_]*\s*)?\[(?:.*\)\s*,)?\s*(?P<name>[A-Za-z_][\w.]*)\s*\(", re.DOTALL),
)
_CLOSERS = re.compile(r"(?:[\s}\],;]|```|</tool_call>|</function>)+")
_FENCE_PREFIX = re.compile(r"\s*(?:`{1,3}[a-zA-Z_]*\s*)?\[?\s*")
_LONGEST_HEADER = 400
_LONGEST_HELD = 64 * 1024


class CallReader:
    """Turns the text of an answer into pieces: text, and tool calls."""

    def __init__(self, tool_format: generation_pb2.ToolPromptFormat.ValueType, tools: frozenset[str]) -> None:
        """Reads Python lists only where `tool_format` says so; without tools everything is text."""
        self._python = tool_format == generation_pb2.TOOL_PROMPT_FORMAT_PYTHON_LIST
        self._tools = tools
        self._held = ""
        self._scanner: JsonScanner | None = None
        self._object: JsonScanner | None = None
        self._list = PythonList()
        self._after_call = False
        self._line_start = True
        self.calls = 0
        """So many calls were found."""

    def feed(self, text: str) -> Iterator[Piece]:
        """Takes the next characters and yields what is certain by now."""
        if not self._tools:
            yield _text(text)
            return
        self._held += text
        yield from self._read(last=False)

    def finish(self) -> Iterator[Piece]:
        """Yields what is left: the text that was held back, or the end of a call that was cut."""
        if not self._tools:
            return
        name = self._cut_name()
        if name is not None:
            yield self._started(name)
            yield _delta(self.calls - 1, self._held.strip())
            yield _finished(self.calls - 1, message_pb2.TOOL_CALL_PARSE_STATUS_FAILED)
            self._held = ""
            return
        yield from self._read(last=True)
        if self._scanner is not None:
            self._scanner = None
            yield _finished(self.calls - 1, message_pb2.TOOL_CALL_PARSE_STATUS_FAILED)
        elif self._held and not (self._after_call and _CLOSERS.fullmatch(self._held)):
            yield _text(self._held)
        self._held = ""

    def _read(self, *, last: bool) -> Iterator[Piece]:
        while self._held:
            before = self._held, self._after_call
            if self._scanner is not None:
                yield from self._read_arguments()
            elif self._after_call:
                yield from self._read_after_call()
            else:
                yield from self._read_text(last=last)
            if (self._held, self._after_call) == before:
                return

    def _read_arguments(self) -> Iterator[Piece]:
        assert self._scanner is not None
        taken = self._scanner.feed(self._held)
        arguments, self._held = self._held[:taken], self._held[taken:]
        if arguments:
            yield _delta(self.calls - 1, arguments)
        if self._scanner.done:
            status = (
                message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED
                if _is_object(self._scanner.text)
                else message_pb2.TOOL_CALL_PARSE_STATUS_FAILED
            )
            self._scanner = None
            self._after_call = True
            yield _finished(self.calls - 1, status)

    def _read_after_call(self) -> Iterator[Piece]:
        if self._object is not None and self._held.lstrip().startswith(","):
            # Further keys of the call's object, as an id. What does not end soon is none of it.
            rest = self._object.copy()
            taken = rest.feed(self._held)
            if not rest.done and len(self._held) < _LONGEST_HEADER:
                return
            self._held = self._held[taken if rest.done else 0 :]
        elif not self._held.strip():
            return
        self._object = None
        closers = _CLOSERS.match(self._held)
        if closers is not None:
            self._held = self._held[closers.end() :]
        if not self._held or any(closer.startswith(self._held) for closer in ("```", "</tool_call>", "</function>")):
            return
        self._after_call = False
        self._line_start = True
        yield from ()

    def _read_text(self, *, last: bool) -> Iterator[Piece]:
        start = self._candidate_at()
        if start > 0:
            text, self._held = self._held[:start], self._held[start:]
            self._line_start = False
            yield _text(text)
            return
        for header in (_JSON_HEADER, _TAG_HEADER):
            match = header.match(self._held)
            if match is not None:
                if header is _JSON_HEADER:
                    self._object = JsonScanner()
                    self._object.feed(self._held[self._held.index("{") : match.end()])
                self._held = self._held[match.end() :]
                self._scanner = JsonScanner()
                yield self._started(match["name"])
                return
        empty = _TAG_EMPTY.match(self._held)
        if empty is not None:
            self._held = self._held[empty.end() :]
            self._after_call = True
            yield from self._whole(empty["name"], "{}")
        elif self._python and self._list.may_begin(self._held):
            yield from self._read_python()
        else:
            yield from self._read_unordered(last=last)

    def _read_unordered(self, *, last: bool) -> Iterator[Piece]:
        """A JSON object whose header is not in the usual order is held until it ends, then looked at as a whole."""
        start = _JSON_START.match(self._held)
        if start is None:
            if last or not self._may_become_call():
                yield from self._release()
            return
        scanner = JsonScanner()
        # An object ends with a brace: without one there is nothing to look for.
        taken = scanner.feed(self._held[start.end() :]) if "}" in self._held else 0
        if not scanner.done:
            if not self._may_become_call():
                yield from self._release()
            return
        found = _call_in(scanner.text, self._tools)
        if found is None:
            yield from self._release(start.end() + taken)
            return
        self._held = self._held[start.end() + taken :]
        self._after_call = True
        yield from self._whole(*found)

    def _read_python(self) -> Iterator[Piece]:
        found = self._list.look(self._held)
        if found is None:
            return
        end, calls = found
        self._list = PythonList()
        if not calls:
            yield from self._release(end)
            return
        self._held = self._held[end:]
        self._after_call = True
        for name, arguments in calls:
            yield from self._whole(name, arguments)

    def _release(self, most: int | None = None) -> Iterator[Piece]:
        end = len(self._held) if most is None else most
        # Not an opener again: at least its first character goes out as text.
        text, self._held = self._held[:end], self._held[end:]
        self._line_start = text.endswith("\n")
        yield _text(text)

    def _candidate_at(self) -> int:
        """Where the first text begins that may become a call; the length of what is held when there is none."""
        starts: list[int] = []
        for opener in _OPENERS:
            starts.extend(_first(self._held, opener))
        at_line_start = self._line_start
        for index, character in enumerate(self._held):
            if at_line_start and (character == "{" or (character == "[" and self._list_may_call(index))):
                starts.append(index)
                break
            if character == "\n":
                at_line_start = True
            elif not character.isspace():
                at_line_start = False
        # White space stays with what follows it: before a call it is part of the call's dress.
        return len(self._held[: min(starts, default=len(self._held))].rstrip())

    def _list_may_call(self, index: int) -> bool:
        if self._python:
            return True
        rest = self._held[index + 1 :].lstrip()
        return not rest or rest.startswith("{")

    def _may_become_call(self) -> bool:
        """Whether what is held can still turn into a call."""
        held = self._held
        stripped = held.lstrip()
        if any(opener.startswith(stripped) for opener in _OPENERS):
            return True
        if stripped.startswith("<"):
            return len(stripped) < _LONGEST_HEADER
        prefix = _FENCE_PREFIX.match(held)
        rest = held[prefix.end() :] if prefix is not None else held
        if not rest:
            return len(held) < _LONGEST_HEADER
        # Only an object that names a tool or arguments early is worth holding until its end.
        if not rest.startswith("{") or len(rest) > _LONGEST_HELD:
            return False
        return len(rest) < _LONGEST_HEADER or '"arguments"' in rest or '"parameters"' in rest

    def _cut_name(self) -> str | None:
        """Returns the tool of a call that broke off before its arguments."""
        if self._scanner is not None or self._after_call:
            return None
        for pattern in _CUT if self._python else _CUT[:-1]:
            match = pattern.match(self._held)
            if match is not None and match["name"] in self._tools:
                return match["name"]
        return None

    def _whole(self, name: str, arguments: str) -> Iterator[Piece]:
        yield self._started(name)
        yield _delta(self.calls - 1, arguments)
        yield _finished(self.calls - 1, message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED)

    def _started(self, name: str) -> Piece:
        self.calls += 1
        started = inference_service_pb2.ToolCallStarted(index=self.calls - 1, name=name)
        return inference_service_pb2.ChatCompletionResponse(tool_call_started=started)


def _first(text: str, opener: str) -> Iterator[int]:
    """Yields where an opener begins in a text, whole or cut off by the text's end."""
    found = text.find(opener)
    if found >= 0:
        yield found
        return
    for length in range(min(len(opener) - 1, len(text)), 0, -1):
        if text.endswith(opener[:length]):
            yield len(text) - length
            return


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _call_in(text: str, tools: frozenset[str]) -> tuple[str, str] | None:
    """Returns (name, arguments) of a JSON object that is a call, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    inner = value.get("function") if isinstance(value.get("function"), dict) else value
    name = inner.get("name", inner.get("function"))
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments) if _is_object(arguments) else None
    if not isinstance(name, str):
        return None
    if (
        arguments is None
        and name in tools
        and not set(inner) - {"name", "function", "type", "id", "arguments", "parameters"}
    ):
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _text(text: str) -> Piece:
    return inference_service_pb2.ChatCompletionResponse(text=inference_service_pb2.TextDelta(text=text))


def _delta(index: int, text: str) -> Piece:
    delta = inference_service_pb2.ToolCallDelta(index=index, arguments_json=text)
    return inference_service_pb2.ChatCompletionResponse(tool_call_delta=delta)


def _finished(index: int, status: message_pb2.ToolCallParseStatus.ValueType) -> Piece:
    finished = inference_service_pb2.ToolCallFinished(index=index, parse_status=status)
    return inference_service_pb2.ChatCompletionResponse(tool_call_finished=finished)
