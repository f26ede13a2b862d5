"""A conversation with tools, written for a model that only knows text.

Calls and their results stand in the message of the user that led to them. A small model that reads a call among its
own answers writes the next one; one that reads what was run and what it gave answers in words.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.inference.v1 import inference_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORCED = {generation_pb2.ToolChoice.MODE_REQUIRED, generation_pb2.ToolChoice.MODE_NAMED}
_NOW_ANSWER = "\n\nSay the answer in a sentence."
_NOW_MEND = "\n\nThat failed: run something better."
_HOW = {
    generation_pb2.TOOL_PROMPT_FORMAT_JSON: 'answer only with JSON: {"name": "TOOL", "arguments": {...}}',
    generation_pb2.TOOL_PROMPT_FORMAT_FUNCTION_TAG: "answer only with: <function=tool>{...}</function>, where {...} is"
    " the JSON of its arguments",
    generation_pb2.TOOL_PROMPT_FORMAT_PYTHON_LIST: "answer only with a Python list of calls: [tool(argument=value)]",
}


def is_forced(choice: generation_pb2.ToolChoice) -> bool:
    """True when the model must call a tool."""
    return choice.mode in _FORCED


def offered(request: inference_service_pb2.ChatCompletionRequest) -> list[generation_pb2.ToolDefinition]:
    """Returns the tools that the model may call under the request's choice.

    A model that may choose and goes in a circle is offered none: it answers. That is one that has made the same call
    again, since the user spoke, and has got the same result or failed again.
    """
    match request.tool_choice.mode:
        case generation_pb2.ToolChoice.MODE_NONE:
            return []
        case generation_pb2.ToolChoice.MODE_NAMED:
            return [tool for tool in request.tools if tool.name == request.tool_choice.name]
        case generation_pb2.ToolChoice.MODE_REQUIRED:
            return list(request.tools)
        case _:
            return [] if _goes_in_a_circle(request.messages) else list(request.tools)


def _goes_in_a_circle(messages: Sequence[message_pb2.Message]) -> bool:
    results = {message.call_id: _text(message) for message in messages if message.role == message_pb2.ROLE_TOOL}
    spoke = max((i for i, message in enumerate(messages) if message.role == message_pb2.ROLE_USER), default=0)
    seen: set[tuple[str, str, str]] = set()
    for message in messages[spoke:]:
        # A failure tells of its place too, as `<cell 2>`: there the call alone is compared.
        made = {
            (call.name, call.arguments_json, "" if _has_failed(result) else result)
            for call in message.tool_calls
            for result in [results.get(call.call_id, "")]
        }
        if made & seen:
            return True
        seen |= made
    return False


def call_schema(tools: Sequence[generation_pb2.ToolDefinition]) -> dict[str, Any]:
    """Returns the JSON schema of a call of one of the tools.

    The engine's own `tool_choice` enforces nothing, so an answer that must be a call is held to this schema.
    """
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for tool in tools:
        arguments = json.loads(tool.parameters_json_schema) if tool.parameters_json_schema else {}
        # References are resolved from the root of a schema, so what they point to moves there.
        for keyword in ("$defs", "definitions"):
            definitions.setdefault(keyword, {}).update(arguments.pop(keyword, {}))
        arguments.setdefault("type", "object")
        arguments.setdefault("properties", {})
        arguments.setdefault("additionalProperties", False)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return schema | {keyword: found for keyword, found in definitions.items() if found}


def rewritten(request: inference_service_pb2.ChatCompletionRequest) -> list[message_pb2.Message]:
    """Returns the conversation with its tools, calls and results as plain text."""
    form = request.tool_prompt_format or generation_pb2.TOOL_PROMPT_FORMAT_JSON
    forced = is_forced(request.tool_choice)
    messages = _folded(request.messages)
    tools = offered(request)
    if request.messages[-1].role == message_pb2.ROLE_TOOL and not forced:
        # Without it a small model calls the same tool again and again.
        after = _NOW_MEND if tools and _has_failed(_text(request.messages[-1])) else _NOW_ANSWER
        messages[-1].parts.add(text=after, provenance=message_pb2.PROVENANCE_SYSTEM)
    if not tools:
        return messages
    # A call that is enforced is held to a JSON schema: the model is not asked for anything else.
    text = _tools_text(tools, generation_pb2.TOOL_PROMPT_FORMAT_JSON if forced else form, forced=forced)
    if messages and messages[0].role == message_pb2.ROLE_SYSTEM:
        messages[0].parts.add(text="\n\n" + text, provenance=message_pb2.PROVENANCE_SYSTEM)
    else:
        part = message_pb2.ContentPart(text=text, provenance=message_pb2.PROVENANCE_SYSTEM)
        messages.insert(0, message_pb2.Message(role=message_pb2.ROLE_SYSTEM, parts=[part]))
    return messages


def _tools_text(
    tools: Sequence[generation_pb2.ToolDefinition], form: generation_pb2.ToolPromptFormat.ValueType, *, forced: bool
) -> str:
    # Short on purpose: every token of it is read before the first one is written.
    lines = ["You have these tools:"]
    for tool in tools:
        schema = json.loads(tool.parameters_json_schema) if tool.parameters_json_schema else {}
        if form == generation_pb2.TOOL_PROMPT_FORMAT_PYTHON_LIST:
            signature = ", ".join(f"{name}: {_type(value)}" for name, value in schema.get("properties", {}).items())
            lines.append(f"- {tool.name}({signature}): {tool.description}")
        else:
            arguments = json.dumps(schema.get("properties", {}), separators=(",", ":"))
            lines.append(f"- {tool.name}: {tool.description} Arguments: {arguments}")
    when = "Now call one:" if forced else f"To call {'it' if len(tools) == 1 else 'one'},"
    # A small model that reads a placeholder makes up a tool; one that reads a name uses it.
    lines.append(f"{when} {_HOW[form].replace('TOOL', tools[0].name)}")
    if not forced:
        lines.append("Otherwise answer in words.")
    return "\n".join(lines)


def _type(schema: object) -> str:
    return str(schema.get("type", "any")) if isinstance(schema, dict) else "any"


def _folded(messages: Sequence[message_pb2.Message]) -> list[message_pb2.Message]:
    """The conversation without calls and results of its own: they follow what the user said."""
    folded: list[message_pb2.Message] = []
    asked: dict[str, message_pb2.ToolCall] = {}
    for message in messages:
        if message.role == message_pb2.ROLE_TOOL:
            call = asked.get(message.call_id)
            text = f"\n\nThis was run:\n{_what_ran(call)}\nIt gave:\n{_text(message).strip()}"
            _place_of_results(folded).parts.add(
                text=text, provenance=message_pb2.PROVENANCE_TOOL_RESULT, source=call.name if call else ""
            )
            continue
        asked.update((call.call_id, call) for call in message.tool_calls)
        if message.tool_calls and not _text(message).strip():
            continue
        plain = message_pb2.Message()
        plain.CopyFrom(message)
        del plain.tool_calls[:]
        folded.append(plain)
    return folded


def _place_of_results(folded: list[message_pb2.Message]) -> message_pb2.Message:
    if not folded or folded[-1].role != message_pb2.ROLE_USER:
        folded.append(message_pb2.Message(role=message_pb2.ROLE_USER))
    return folded[-1]


def _what_ran(call: message_pb2.ToolCall | None) -> str:
    """A call as a reader sees it: code as it stands, anything else with its name."""
    if call is None:
        return "a tool"
    try:
        arguments = json.loads(call.arguments_json or "{}")
    except ValueError:
        return f"{call.name} {call.arguments_json}"
    if isinstance(arguments, dict) and len(arguments) == 1:
        ((name, value),) = arguments.items()
        if isinstance(value, str) and name == "code":
            return value.strip()
    if not isinstance(arguments, dict):
        return f"{call.name} {call.arguments_json}"
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _has_failed(result: str) -> bool:
    """True for a result with an error, as the agent service writes it down."""
    return "\nError: " in f"\n{result}"


def _text(message: message_pb2.Message) -> str:
    return "".join(part.text for part in message.parts)
