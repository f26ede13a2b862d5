"""Tool calls as models really write them, read while they are written."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.inference.tool_formats import CallReader, call_schema, offered, rewritten
from turnwire.inference.v1.inference_service_pb2 import ChatCompletionRequest as Request

JSON = generation_pb2.TOOL_PROMPT_FORMAT_JSON
TAG = generation_pb2.TOOL_PROMPT_FORMAT_FUNCTION_TAG
PYTHON = generation_pb2.TOOL_PROMPT_FORMAT_PYTHON_LIST
SUCCEEDED = message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED
FAILED = message_pb2.TOOL_CALL_PARSE_STATUS_FAILED
REQUIRED = generation_pb2.ToolChoice.MODE_REQUIRED


@dataclass
class _Read:
    text: str = ""
    calls: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])


def _read(
    written: str, form: generation_pb2.ToolPromptFormat.ValueType, seed: int, tools: tuple[str, ...] = ("add", "now")
) -> _Read:
    """Feeds a text in pieces of random length."""
    chance = random.Random(seed)
    cuts = [0]
    while cuts[-1] < len(written):
        cuts.append(cuts[-1] + chance.randint(1, 7))
    return _read_pieces([written[start:end] for start, end in pairwise(cuts)], form, tools)


def _read_pieces(
    written: list[str], form: generation_pb2.ToolPromptFormat.ValueType, tools: tuple[str, ...] = ("add", "now")
) -> _Read:
    reader = CallReader(form, frozenset(tools))
    pieces = [piece for text in written for piece in reader.feed(text)]
    pieces += reader.finish()
    result = _Read()
    for piece in pieces:
        match piece.WhichOneof("payload"):
            case "text":
                result.text += piece.text.text
            case "tool_call_started":
                result.calls.append((piece.tool_call_started.name, "", 0))
            case "tool_call_delta":
                name, arguments, status = result.calls[piece.tool_call_delta.index]
                result.calls[piece.tool_call_delta.index] = (
                    name,
                    arguments + piece.tool_call_delta.arguments_json,
                    status,
                )
            case "tool_call_finished":
                name, arguments, _ = result.calls[piece.tool_call_finished.index]
                result.calls[piece.tool_call_finished.index] = (
                    name,
                    arguments,
                    piece.tool_call_finished.parse_status,
                )
            case _:
                raise AssertionError(piece)
    return result


ONE = [("add", {"n": 1})]
CALLS = [
    ('{"name": "add", "arguments": {"n": 1}}', JSON, "", ONE),
    ('\n\n{"name":"add","arguments":{"n":1}}\n', JSON, "", ONE),
    ('```json\n{"name": "add", "arguments": {"n": 1}}\n```', JSON, "", ONE),
    ('```\n{"name": "add", "parameters": {"n": 1}}\n```', JSON, "", ONE),
    ('<tool_call>\n{"name": "add", "arguments": {"n": 1}}\n</tool_call>', JSON, "", ONE),
    ('{"arguments": {"n": 1}, "name": "add"}', JSON, "", ONE),
    ('{"type": "function", "function": {"name": "add", "arguments": "{\\"n\\": 1}"}}', JSON, "", ONE),
    ('{"name": "now"}', JSON, "", [("now", {})]),
    (
        '<tool_call>{"name":"add","arguments":{"n":1}}</tool_call>\n<tool_call>{"name":"now","arguments":{}}</tool_call>',
        JSON,
        "",
        [*ONE, ("now", {})],
    ),
    ('[{"name":"add","arguments":{"n":1}}, {"name":"now","arguments":{}}]', JSON, "", [*ONE, ("now", {})]),
    ('{"name":"add","arguments":{"s":"}{\\" ]"}}', JSON, "", [("add", {"s": '}{" ]'})]),
    ('I will add:\n```json\n{"name": "add", "arguments": {"n": 1}}\n```\nDone.', JSON, "I will add:Done.", ONE),
    ('<function=add>{"n": 1}</function>', TAG, "", ONE),
    ('<function=add>{"n":1}</function><function=now>{}</function>', TAG, "", [*ONE, ("now", {})]),
    ('[add(n=1, s="a]b"), now()]', PYTHON, "", [("add", {"n": 1, "s": "a]b"}), ("now", {})]),
    ("[add(n=True, m=None)]", PYTHON, "", [("add", {"n": True, "m": None})]),
    (
        "[add(n=true, m=null, xs=[1, {'a': -2.5}])]",
        PYTHON,
        "",
        [("add", {"n": True, "m": None, "xs": [1, {"a": -2.5}]})],
    ),
    ("Sure.\n[add(n=1)]\nDone.", PYTHON, "Sure.Done.", ONE),
    ("```python\n[add(n=1)]\n```", PYTHON, "", ONE),
    ('{"name": "add", "arguments": {"n": 1}, "id": "call_1"} Done.', JSON, "Done.", ONE),
    ('{"name": "add", "arguments": {"n": 1}}\n\nThe sum, I think, is 2.', JSON, "The sum, I think, is 2.", ONE),
    ('{"name": "now", "arguments": null}', JSON, "", [("now", {})]),
    ("<function=now></function>", TAG, "", [("now", {})]),
    ('Adding: <function=add>{"n": 1}</function> ok', TAG, "Adding:ok", ONE),
    ('```json\n{"name":"add","arguments":{"s":"```"}}\n```', JSON, "", [("add", {"s": "```"})]),
    ('{"name":"add","arguments":{"s":"a\\\\"}}', JSON, "", [("add", {"s": "a\\"})]),
    ('{"name":"add","arguments":{"s":"🍳é"}}', JSON, "", [("add", {"s": "🍳é"})]),
]


@pytest.mark.parametrize(("written", "form", "text", "calls"), CALLS, ids=range(len(CALLS)))
def test_calls_are_found_in_every_dress(
    written: str,
    form: generation_pb2.ToolPromptFormat.ValueType,
    text: str,
    calls: list[tuple[str, dict[str, object]]],
):
    for seed in range(30):
        read = _read(written, form, seed)
        assert text == read.text
        assert calls == [(name, json.loads(arguments)) for name, arguments, _ in read.calls]
        assert all(status == SUCCEEDED for _, _, status in read.calls)


TEXTS = [
    ("plain words", JSON),
    ("Hello {world}, a < b and ```python\nprint({1: 2})\n``` bye", JSON),
    ('{"name": "John", "age": 3}', JSON),
    ('Here is JSON:\n```json\n{"a": {"b": 1}}\n```\nok', JSON),
    ("{}\n{}\nhi", JSON),
    ("[1, 2, 3]", PYTHON),
    ("[1,2]", JSON),
    ("a`b``c", JSON),
    ("{", JSON),
    ("[__import__('os').system('x')]", PYTHON),
    ("white space at the end \n\n", JSON),
    ('{"name": "Ada", "role": "add"}', JSON),
    ('A set is {1, 2} and {"name": "add", "arguments": {}} within a line', JSON),
    ("See [the page](https://example.org) and [1] [add", PYTHON),
    ("[add(1)]", PYTHON),
    ("[add(**{'n': 1})]", PYTHON),
    ("[add(n=1e999)]", PYTHON),
    ("[the list goes on", PYTHON),
    ('{"name": "John", "arguments', JSON),
    ('{"a": ' * 3000, JSON),
    ("[" * 3000, PYTHON),
]


@pytest.mark.parametrize(("written", "form"), TEXTS, ids=range(len(TEXTS)))
def test_text_stays_text(written: str, form: generation_pb2.ToolPromptFormat.ValueType):
    for seed in range(30):
        read = _read(written, form, seed)
        assert written == read.text
        assert not read.calls


@pytest.mark.parametrize(
    ("written", "form", "text", "calls"),
    [(*row[:3], len(row[3])) for row in CALLS] + [(written, form, written, 0) for written, form in TEXTS],
    ids=range(len(CALLS) + len(TEXTS)),
)
def test_how_a_text_is_cut_into_pieces_changes_nothing(
    written: str, form: generation_pb2.ToolPromptFormat.ValueType, text: str, calls: int
):
    whole = _read_pieces([written], form)
    assert (text, calls) == (whole.text, len(whole.calls))
    assert whole == _read_pieces(list(written), form)
    for cut in range(1, min(len(written), 200)):
        assert whole == _read_pieces([written[:cut], written[cut:]], form)


CUT = [
    ('{"name":"add","arguments":{"n":', JSON, "add"),
    ('{"name":"add","argum', JSON, "add"),
    ('{"name": "add"', JSON, "add"),
    ('```json\n{"type": "function", "function": {"name": "now", "para', JSON, "now"),
    ('{"arguments": {"n": 1}, "name": "add"', JSON, "add"),
    ('<function=add>{"n": ', TAG, "add"),
    ("<function=now>", TAG, "now"),
    ("<function=now></func", TAG, "now"),
    ('[add(n=1, s="a', PYTHON, "add"),
    ("[add(n=1), now(", PYTHON, "now"),
]


@pytest.mark.parametrize(("written", "form", "name"), CUT, ids=range(len(CUT)))
def test_a_call_that_is_cut_has_failed(written: str, form: generation_pb2.ToolPromptFormat.ValueType, name: str):
    for seed in range(30):
        read = _read("Let me see.\n" + written, form, seed)
        assert [(name, FAILED)] == [(found, status) for found, _, status in read.calls]
        assert "Let me see." == read.text


def test_arguments_that_are_no_json_have_failed():
    read = _read('{"name": "add", "arguments": {"n": one}}', JSON, 1)
    assert [("add", '{"n": one}', FAILED)] == read.calls


def test_arguments_are_given_out_while_they_are_written():
    reader = CallReader(JSON, frozenset({"add"}))
    list(reader.feed('{"name": "add", "arguments": {"text": "The quick'))
    (piece,) = reader.feed(" brown fox")
    assert " brown fox" == piece.tool_call_delta.arguments_json


def test_a_long_text_that_looks_like_a_call_is_read_in_linear_time():
    reader = CallReader(JSON, frozenset({"add"}))
    written = '{"arguments": "' + "x" * 200_000
    begun = time.process_time()
    text = "".join(
        piece.text.text for start in range(0, len(written), 4) for piece in reader.feed(written[start : start + 4])
    )
    text += "".join(piece.text.text for piece in reader.finish())
    assert written == text
    assert time.process_time() - begun < 10


def test_without_tools_everything_is_text():
    written = '{"name": "add", "arguments": {"n": 1}}'
    assert written == _read(written, JSON, 1, tools=()).text


SCHEMAS = [
    "",
    '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}',
    '{"type":"object","properties":{"p":{"$ref":"#/$defs/P"}},"$defs":{"P":{"type":"string","enum":["a","b"]}}}',
    '{"properties":{"xs":{"type":"array","items":{"type":"object","properties":{"y":{"type":"number"}}}}}}',
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_forced_call_has_a_schema_that_holds_its_arguments(schema: str):
    tools = [
        generation_pb2.ToolDefinition(name="one", parameters_json_schema=schema),
        generation_pb2.ToolDefinition(name="two"),
    ]
    validator = Draft202012Validator(call_schema(tools))
    Draft202012Validator.check_schema(validator.schema)

    assert validator.is_valid({"name": "two", "arguments": {}})
    assert not validator.is_valid({"name": "three", "arguments": {}})
    assert not validator.is_valid({"name": "two", "arguments": {"more": 1}})
    assert not validator.is_valid({"name": "two"})


def _said(role: message_pb2.Role.ValueType, text: str, **fields: Any) -> message_pb2.Message:
    return message_pb2.Message(role=role, parts=[message_pb2.ContentPart(text=text)] if text else [], **fields)


def _with_results(
    *results: str,
    arguments: str = '{"n": 1}',
    mode: generation_pb2.ToolChoice.Mode.ValueType = generation_pb2.ToolChoice.MODE_UNSPECIFIED,
) -> Request:
    """A question, a call a result, and the results."""
    messages = [_said(message_pb2.ROLE_USER, "add")]
    for number, result in enumerate(results):
        call = message_pb2.ToolCall(call_id=f"c{number}", name="add", arguments_json=arguments)
        messages.append(_said(message_pb2.ROLE_ASSISTANT, "", tool_calls=[call]))
        messages.append(_said(message_pb2.ROLE_TOOL, result, call_id=f"c{number}"))
    request = Request(messages=messages, tools=[generation_pb2.ToolDefinition(name="add")])
    request.tool_choice.mode = mode
    return request


def _texts(request: Request) -> list[tuple[message_pb2.Role.ValueType, str]]:
    return [(message.role, "".join(part.text for part in message.parts)) for message in rewritten(request)]


def test_calls_and_results_stand_in_the_message_that_led_to_them():
    (_, tools), *rest = _texts(_with_results("2"))

    assert "- add:" in tools
    asked = "add\n\nThis was run:\nadd(n=1)\nIt gave:\n2\n\nSay the answer in a sentence."
    assert [(message_pb2.ROLE_USER, asked)] == rest

    (_, code) = _texts(_with_results("2", arguments='{"code": "print(1 + 1)\\n"}'))[-1]
    assert "This was run:\nprint(1 + 1)\nIt gave:\n2" in code


def test_what_was_said_beside_a_call_and_what_comes_after_a_result_keep_their_places():
    call = message_pb2.ToolCall(call_id="c", name="add", arguments_json="{}")
    request = Request(
        messages=[
            _said(message_pb2.ROLE_USER, "one"),
            _said(message_pb2.ROLE_ASSISTANT, "I add.", tool_calls=[call]),
            _said(message_pb2.ROLE_TOOL, "2", call_id="c"),
            _said(message_pb2.ROLE_ASSISTANT, "It is 2."),
            _said(message_pb2.ROLE_USER, "two"),
        ]
    )

    assert [
        (message_pb2.ROLE_USER, "one"),
        (message_pb2.ROLE_ASSISTANT, "I add."),
        (message_pb2.ROLE_USER, "\n\nThis was run:\nadd()\nIt gave:\n2"),
        (message_pb2.ROLE_ASSISTANT, "It is 2."),
        (message_pb2.ROLE_USER, "two"),
    ] == _texts(request)


def test_a_failed_call_is_to_be_run_better():
    assert _texts(_with_results("Traceback\nError: NameError: x"))[-1][1].endswith("That failed: run something better.")
    assert _texts(_with_results("No Error: at all"))[-1][1].endswith("Say the answer in a sentence.")


def test_a_model_that_goes_in_a_circle_is_offered_no_tool_any_more():
    def names(request: Request) -> list[str]:
        return [tool.name for tool in offered(request)]

    assert [] == names(_with_results("2", "2"))
    assert [] == names(_with_results("2", "3", "2"))
    assert ["add"] == names(_with_results("2", "2", mode=REQUIRED))
    # To look again whether something has changed is no circle, and neither is one result of two calls.
    assert ["add"] == names(_with_results("pending", "done"))
    other = _with_results("ok", "ok")
    other.messages[1].tool_calls[0].arguments_json = '{"n": 2}'
    assert ["add"] == names(other)
    beside = _with_results("ok", "ok")
    beside.messages[1].tool_calls.extend(beside.messages.pop(3).tool_calls)
    assert ["add"] == names(beside)

    circle = _with_results("in cell 1\nError: x", "in cell 2\nError: x")
    assert [message_pb2.ROLE_USER] == [role for role, _ in _texts(circle)]
    assert _texts(circle)[-1][1].endswith("Say the answer in a sentence.")
    # The next thing that the user says begins anew.
    circle.messages.append(_said(message_pb2.ROLE_USER, "again"))
    assert ["add"] == names(circle)
