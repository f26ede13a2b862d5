"""The moment at which an answer turns out to be a call, at whatever place it is cut into pieces."""

from __future__ import annotations

import pytest

from turnwire.inference.tool_formats.beginning import CallBeginning

TOOLS = frozenset({"code_interpreter", "add"})


def _found(text: str, size: int) -> bool:
    beginning = CallBeginning(TOOLS)
    for start in range(0, len(text), size):
        beginning.feed(text[start : start + size])
    return beginning.found


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": {"n": 1}}',
        ' \n{ "name" : "add" }',
        '```json\n{"name": "code_interpreter", "arguments"',
        '{"name": "made_up", "arguments": {',
        '{"name":"made_up","parameters":{}',
    ],
)
def test_a_call_is_seen(text: str, size: int):
    assert _found(text, size)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "The sum is 3.",
        '{"name": "Ann", "age": 7}',
        '{"name": "Ann"}, {"arguments": 1}',
        '{"title": "add"}',
        'I call {"name": "add", "arguments": {}}',
        "",
    ],
)
def test_what_is_no_call_is_left_alone(text: str, size: int):
    assert not _found(text, size)
