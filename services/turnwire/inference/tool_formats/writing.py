"""A conversation with tools, written for a model that only knows text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.inference.v1 import inference_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORCED = {generation_pb2.ToolChoice.MODE_REQUIRED, generation_pb2.ToolChoice.MODE_NAMED}
_NOW_ANSWER = "\n\nNow answer with this result, in words."
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
    """Returns the tools that the model may call under the request's choice."""
    match request.tool_choice.mode:
        case generation_pb2.ToolChoice.MODE_NONE:
            return []
        case generation_pb2.ToolChoice.MODE_NAMED:
            return [tool for tool in request.tools if tool.name == request.tool_choice.name]
        case _:
            return list(request.tools)


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
    names = {call.call_id: call.name for message in request.messages for call in message.tool_calls}
    messages = [_plain(message, form, names) for message in request.messages]
    tools = offered(request)
    if not tools:
        return messages
    forced = is_forced(request.tool_choice)
    if request.messages[-1].role == message_pb2.ROLE_TOOL and not forced:
        # Without it a small model calls the same tool again and again.
        messages[-1].parts.add(text=_NOW_ANSWER, provenance=message_pb2.PROVENANCE_SYSTEM)
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
    when = "Now call one:" if forced else "When one of them helps, call it:"
    # A small model that reads a placeholder makes up a tool; one that reads a name uses it.
    lines.append(f"{when} {_HOW[form].replace('TOOL', tools[0].name)}")
    return "\n".join(lines)


def _type(schema: object) -> str:
    return str(schema.get("type", "any")) if isinstance(schema, dict) else "any"


def _plain(
    message: message_pb2.Message, form: generation_pb2.ToolPromptFormat.ValueType, names: dict[str, str]
) -> message_pb2.Message:
    plain = message_pb2.Message()
    plain.CopyFrom(message)
    if message.role == message_pb2.ROLE_TOOL:
        plain.role = message_pb2.ROLE_USER
        text = "".join(part.text for part in message.parts)
        del plain.parts[:]
        plain.parts.add(text=f"Result of {names.get(message.call_id, 'the tool')}: {text}")
    elif message.tool_calls:
        del plain.tool_calls[:]
        plain.parts.add(text=_calls_text(message.tool_calls, form))
    return plain


def _calls_text(calls: Sequence[message_pb2.ToolCall], form: generation_pb2.ToolPromptFormat.ValueType) -> str:
    match form:
        case generation_pb2.TOOL_PROMPT_FORMAT_FUNCTION_TAG:
            return "\n".join(f"<function={call.name}>{call.arguments_json}</function>" for call in calls)
        case generation_pb2.TOOL_PROMPT_FORMAT_PYTHON_LIST:
            return f"[{', '.join(_python_call(call) for call in calls)}]"
        case _:
            return "\n".join(
                f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments_json or "{}"}}}' for call in calls
            )


def _python_call(call: message_pb2.ToolCall) -> str:
    try:
        arguments = json.loads(call.arguments_json or "{}")
    except ValueError:
        arguments = {}
    values = arguments.items() if isinstance(arguments, dict) else ()
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in values)})"
