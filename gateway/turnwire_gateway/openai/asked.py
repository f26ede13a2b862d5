"""A chat completion request, read: everything in it is honoured, or refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire_gateway.openai import fields
from turnwire_gateway.openai.failures import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLACE = re.compile(r"(?P<told>.*) - at `(?:key in )?\$\.?(?P<path>.*)`", re.DOTALL)
_UNKNOWN_FIELD = re.compile("Object contains unknown field `(.*)`", re.DOTALL)
_USER, _SYSTEM = message_pb2.PROVENANCE_USER, message_pb2.PROVENANCE_SYSTEM
_MOST_STOPS = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a model or an agent."""

    model: str
    messages: list[message_pb2.Message]
    sampling: generation_pb2.SamplingParameters
    tools: list[generation_pb2.ToolDefinition]
    tool_choice: generation_pb2.ToolChoice | None
    response_format: generation_pb2.ResponseFormat | None
    stream: bool
    include_usage: bool
    labels: dict[str, str]


def read(body: bytes) -> Asked:
    """Returns the request of a body.

    Raises:
        Refused: it is none, or asks for something that cannot be honoured.
    """
    try:
        found = msgspec.json.decode(body, type=fields.Fields)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(None, f"The body is no JSON: {error}.") from None
    _refuse_what_nothing_honours(found)
    messages = [_message(f"messages[{index}]", message) for index, message in enumerate(found.messages)]
    _name_tools(messages)
    return Asked(
        model=found.model,
        messages=messages,
        sampling=_sampling(found),
        tools=_tools(found.tools or ()),
        tool_choice=_choice(found),
        response_format=_format(found.response_format),
        stream=bool(found.stream),
        include_usage=bool(found.stream_options is not None and found.stream_options.include_usage),
        labels=_labels(found),
    )


def _misfit(told: str) -> Refused:
    match = _PLACE.fullmatch(told)
    path = match["path"] if match is not None else ""
    told = match["told"] if match is not None else told
    unknown = _UNKNOWN_FIELD.fullmatch(told)
    if unknown is not None:
        param = ".".join(part for part in (path, unknown[1]) if part)
        return Refused(param[:200], f"Unrecognized request argument supplied: {param[:200]}", code="unknown_parameter")
    missing = re.fullmatch("Object missing required field `(.*)`", told)
    if missing is not None:
        param = ".".join(part for part in (path, missing[1]) if part)
        return Refused(param, f"Missing required parameter: {param!r}.", code="missing_required_parameter")
    return Refused(path[:200] or None, f"Invalid value for {path[:200]!r}: {told[:300]}.", code="invalid_value")


def _refuse_what_nothing_honours(found: fields.Fields) -> None:
    for name, neutral in fields.NEUTRAL.items():
        value = getattr(found, name)
        if value is not None and value not in neutral:
            allowed = " or ".join(json.dumps(item) for item in neutral)
            only = f" Only {allowed} is." if allowed else " Leave it out."
            raise Refused(name, f"{name} = {json.dumps(value)[:100]} is not supported.{only}", code="unsupported_value")
    options = found.stream_options
    if options is not None and not found.stream:
        raise Refused("stream_options", "stream_options is only allowed when stream is true.")
    if options is not None and options.include_obfuscation:
        raise Refused("stream_options.include_obfuscation", "Obfuscation is not supported. Leave it out.")


def _message(where: str, message: fields.AnyMessage) -> message_pb2.Message:
    match message:
        case fields.SystemMessage() | fields.DeveloperMessage():
            role, provenance = message_pb2.ROLE_SYSTEM, _SYSTEM
            made = message_pb2.Message(role=role, name=message.name or "")
        case fields.UserMessage():
            role, provenance = message_pb2.ROLE_USER, _USER
            made = message_pb2.Message(role=role, name=message.name or "")
        case fields.AssistantMessage():
            for name in ("annotations", "audio", "function_call", "refusal"):
                if getattr(message, name) not in (None, []):
                    raise Refused(f"{where}.{name}", f"{where}.{name} is not supported. Leave it out.")
            provenance = message_pb2.PROVENANCE_MODEL
            made = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, name=message.name or "")
            made.tool_calls.extend(_calls(where, message.tool_calls or ()))
            if message.content is None and not made.tool_calls:
                raise Refused(f"{where}.content", f"{where} has neither content nor tool_calls.")
        case fields.ToolMessage():
            provenance = message_pb2.PROVENANCE_TOOL_RESULT
            made = message_pb2.Message(role=message_pb2.ROLE_TOOL, call_id=message.tool_call_id)
        case fields.FunctionMessage():
            raise Refused(f"{where}.role", "Messages of the role function are not supported: use tools.")
    for text in _texts(f"{where}.content", message.content):
        made.parts.add(text=text, provenance=provenance)
    return made


def _texts(where: str, content: fields.Content | None) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for index, part in enumerate(content):
        if not isinstance(part, fields.TextPart):
            kind = type(part).__struct_config__.tag
            raise Refused(f"{where}[{index}]", f"Parts of the type {kind} are not supported.", code="unsupported_value")
        texts.append(part.text)
    return texts


def _calls(where: str, calls: Sequence[fields.FunctionCall | fields.CustomCall]) -> list[message_pb2.ToolCall]:
    made: list[message_pb2.ToolCall] = []
    for index, call in enumerate(calls):
        if not isinstance(call, fields.FunctionCall):
            raise Refused(f"{where}.tool_calls[{index}]", "Custom tools are not supported: use functions.")
        made.append(
            message_pb2.ToolCall(
                call_id=call.id,
                name=call.function.name,
                arguments_json=call.function.arguments or "{}",
                model_call_id=call.id,
                parse_status=message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED,
            )
        )
    return made


def _name_tools(messages: list[message_pb2.Message]) -> None:
    """Says of each result which tool it comes from; OpenAI's messages tell the call only."""
    names = {call.call_id: call.name for message in messages for call in message.tool_calls}
    for message in messages:
        if message.role == message_pb2.ROLE_TOOL:
            for part in message.parts:
                part.source = names.get(message.call_id, "")


def _sampling(found: fields.Fields) -> generation_pb2.SamplingParameters:
    made = generation_pb2.SamplingParameters()
    if found.temperature == 0 or found.top_p == 0:
        made.greedy.SetInParent()
    elif found.temperature is not None or found.top_p is not None:
        made.top_p.SetInParent()
        if found.temperature is not None:
            made.top_p.temperature = found.temperature
        if found.top_p is not None:
            made.top_p.top_p = found.top_p
    if found.max_tokens is not None and found.max_completion_tokens not in {None, found.max_tokens}:
        raise Refused("max_tokens", "max_tokens and max_completion_tokens differ: send one of them.")
    most = found.max_completion_tokens or found.max_tokens
    if most is not None:
        made.max_tokens = most
    if found.seed is not None:
        made.seed = found.seed
    stops = [found.stop] if isinstance(found.stop, str) else found.stop or []
    if len(stops) > _MOST_STOPS or "" in stops:
        raise Refused("stop", f"stop is at most {_MOST_STOPS} texts, none of them empty.")
    made.stop_sequences.extend(stops)
    return made


def _tools(tools: Sequence[fields.FunctionTool | fields.CustomTool]) -> list[generation_pb2.ToolDefinition]:
    made: list[generation_pb2.ToolDefinition] = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, fields.FunctionTool):
            raise Refused(f"tools[{index}].type", "Custom tools are not supported: use functions.")
        function = tool.function
        if function.strict:
            where = f"tools[{index}].function.strict"
            raise Refused(where, "strict = true is not supported: the schema is shown to the model, not forced on it.")
        schema = "" if function.parameters is None else json.dumps(function.parameters, ensure_ascii=False)
        made.append(
            generation_pb2.ToolDefinition(
                name=function.name, description=function.description or "", parameters_json_schema=schema
            )
        )
    return made


_MODES = {
    "none": generation_pb2.ToolChoice.MODE_NONE,
    "auto": generation_pb2.ToolChoice.MODE_AUTO,
    "required": generation_pb2.ToolChoice.MODE_REQUIRED,
}


def _choice(found: fields.Fields) -> generation_pb2.ToolChoice | None:
    match found.tool_choice:
        case None:
            return None
        case str() as mode:
            return generation_pb2.ToolChoice(mode=_MODES[mode])
        case fields.NamedChoice(function=function):
            return generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name=function.name)
        case fields.AllowedChoice() | fields.CustomChoice() as other:
            kind = type(other).__struct_config__.tag
            raise Refused("tool_choice.type", f"The tool choice {kind} is not supported.", code="unsupported_value")


def _format(
    asked: fields.TextFormat | fields.ObjectFormat | fields.SchemaFormat | None,
) -> generation_pb2.ResponseFormat | None:
    match asked:
        case None | fields.TextFormat():
            return None
        case fields.ObjectFormat():
            return generation_pb2.ResponseFormat(json_schema='{"type": "object"}')
        case fields.SchemaFormat(json_schema=schema):
            if schema.schema is None:
                raise Refused("response_format.json_schema.schema", "The schema is missing.")
            return generation_pb2.ResponseFormat(json_schema=json.dumps(schema.schema, ensure_ascii=False))


def _labels(found: fields.Fields) -> dict[str, str]:
    labels: dict[str, Any] = dict(found.metadata or {})
    for name in ("user", "safety_identifier"):
        value = getattr(found, name)
        if value is not None:
            labels.setdefault(name, value)
    return labels
