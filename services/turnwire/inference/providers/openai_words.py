"""A chat request in the words of OpenAI's API, and back; for every engine and server that speaks them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from turnwire.common.v1 import generation_pb2, message_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.inference.v1 import inference_service_pb2

ROLES = {
    message_pb2.ROLE_SYSTEM: "system",
    message_pb2.ROLE_USER: "user",
    message_pb2.ROLE_ASSISTANT: "assistant",
    message_pb2.ROLE_TOOL: "tool",
}

_ONE_FILTER: dict[str | None, dict[str, Any]] = {
    "top_p": {"top_k": 0, "min_p": 0.0},
    "top_k": {"top_p": 1.0, "min_p": 0.0},
}

STOP_REASONS = {
    "stop": message_pb2.STOP_REASON_END_OF_TURN,
    "length": message_pb2.STOP_REASON_OUT_OF_TOKENS,
    "tool_calls": message_pb2.STOP_REASON_END_OF_MESSAGE,
    "function_call": message_pb2.STOP_REASON_END_OF_MESSAGE,
    "content_filter": message_pb2.STOP_REASON_CONTENT_FILTER,
}


def messages(conversation: Sequence[message_pb2.Message]) -> list[dict[str, Any]]:
    """Returns the messages of a request."""
    return [_message(message) for message in conversation]


def _message(message: message_pb2.Message) -> dict[str, Any]:
    text = "".join(part.text for part in message.parts)
    result: dict[str, Any] = {"role": ROLES[message.role], "content": text}
    if message.name:
        result["name"] = message.name
    if message.role == message_pb2.ROLE_TOOL:
        result["tool_call_id"] = message.call_id
    if message.tool_calls:
        result["content"] = text or None
        result["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json or "{}"},
            }
            for call in message.tool_calls
        ]
    return result


def tools(definitions: Sequence[generation_pb2.ToolDefinition]) -> list[dict[str, Any]]:
    """Returns the tools of a request."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters_json_schema)
                if tool.parameters_json_schema
                else {"type": "object", "properties": {}},
            },
        }
        for tool in definitions
    ]


def tool_choice(choice: generation_pb2.ToolChoice) -> str | dict[str, Any]:
    """Returns the tool choice of a request."""
    match choice.mode:
        case generation_pb2.ToolChoice.MODE_REQUIRED:
            return "required"
        case generation_pb2.ToolChoice.MODE_NONE:
            return "none"
        case generation_pb2.ToolChoice.MODE_NAMED:
            return {"type": "function", "function": {"name": choice.name}}
        case _:
            return "auto"


def sampling(parameters: generation_pb2.SamplingParameters, *, llama_cpp: bool) -> dict[str, Any]:
    """Returns the sampling fields of a request.

    OpenAI's API has no `top_k` and no repetition penalty; vLLM and llama.cpp take both, under names of their own. The
    engine in this process filters by several rules at once unless told otherwise; asked for one, it uses that one.
    """
    result: dict[str, Any] = {}
    if llama_cpp:
        result |= _ONE_FILTER.get(parameters.WhichOneof("strategy"), {})
    match parameters.WhichOneof("strategy"):
        case "greedy":
            result["temperature"] = 0
        case "top_p":
            _set(result, "temperature", parameters.top_p, "temperature")
            _set(result, "top_p", parameters.top_p, "top_p")
        case "top_k":
            _set(result, "temperature", parameters.top_k, "temperature")
            result["top_k"] = parameters.top_k.top_k
        case None:
            pass
    _set(result, "max_tokens", parameters, "max_tokens")
    _set(result, "seed", parameters, "seed")
    if llama_cpp and "seed" in result:
        # Its seeds have 32 bits, and the last of them means "another one each time".
        result["seed"] %= 2**32 - 1
    _set(result, "repeat_penalty" if llama_cpp else "repetition_penalty", parameters, "repetition_penalty")
    if parameters.stop_sequences:
        result["stop"] = list(parameters.stop_sequences)
    return result


def response_format(form: generation_pb2.ResponseFormat) -> dict[str, Any]:
    """Returns the fields that hold an answer to a form; empty for free text."""
    match form.WhichOneof("format"):
        case "json_schema":
            return json_schema(json.loads(form.json_schema))
        case "grammar":
            return {"grammar": form.grammar}
        case None:
            return {}


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the field that holds an answer to a JSON schema."""
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    }


def usage(reported: dict[str, Any]) -> generation_pb2.Usage:
    """Returns the usage that a server reported; what is no count in it is 0."""
    details = reported.get("prompt_tokens_details")
    return generation_pb2.Usage(
        prompt_tokens=_count(reported.get("prompt_tokens")),
        completion_tokens=_count(reported.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def estimated_usage(request: inference_service_pb2.ChatCompletionRequest, written: int) -> generation_pb2.Usage:
    """Returns a guess, labelled as one: four characters of a prompt are about a token; pieces written are counted."""
    characters = sum(len(part.text) for message in request.messages for part in message.parts)
    characters += sum(len(tool.description) + len(tool.parameters_json_schema) for tool in request.tools)
    return generation_pb2.Usage(prompt_tokens=characters // 4 + 1, completion_tokens=written, estimated=True)


def _set(result: dict[str, Any], key: str, message: Any, field: str) -> None:
    if message.HasField(field):
        result[key] = getattr(message, field)


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**63 else 0
