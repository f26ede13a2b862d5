"""What a request to the inference service has to look like; all violations at once."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.errors import Unimplemented
from turnwire.inference.tool_formats import is_forced
from turnwire.inference.v1 import inference_service_pb2, model_pb2, model_service_pb2
from turnwire.runtime.validation import Violations

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TEXTS = 512
_MODEL_ID = re.compile(r"[A-Za-z0-9._:-]+(/[A-Za-z0-9._:-]+)*")


def check_model(violations: Violations, field: str, name: str) -> None:
    """Requires the name of a model."""
    if not name:
        violations.add(field, "is required; `turnwire models list` shows what there is")
    elif len(name) > 400:
        violations.add(field, f"is {len(name)} characters long; names have at most 400")


def check_chat(request: inference_service_pb2.ChatCompletionRequest) -> None:
    """Requires a conversation that can be continued."""
    violations = Violations()
    check_model(violations, "model", request.model)
    _check_messages(violations, request.messages)
    _check_sampling(violations, request.sampling_parameters)
    names = _check_tools(violations, request.tools)
    choice = request.tool_choice
    if choice.mode not in generation_pb2.ToolChoice.Mode.values():
        violations.add("tool_choice.mode", f"{choice.mode} is unknown to this version")
    if is_forced(choice) and not names:
        violations.add("tool_choice.mode", "a call cannot be forced when there is no tool")
    elif choice.mode == generation_pb2.ToolChoice.MODE_NAMED and choice.name not in names:
        violations.add("tool_choice.name", f"{choice.name[:64]!r} is none of the tools")
    if request.tool_prompt_format not in generation_pb2.ToolPromptFormat.values():
        violations.add("tool_prompt_format", f"{request.tool_prompt_format} is unknown to this version")
    _check_response_format(violations, request.response_format)
    if is_forced(choice) and request.response_format.WhichOneof("format") is not None:
        violations.add("response_format", "does not go together with a tool choice that forces a call")
    violations.raise_if_any()


def check_completion(request: inference_service_pb2.CompletionRequest) -> None:
    """Requires a text that can be continued."""
    violations = Violations()
    check_model(violations, "model", request.model)
    if not request.prompt:
        violations.add("prompt", "is required")
    _check_sampling(violations, request.sampling_parameters)
    _check_response_format(violations, request.response_format)
    violations.raise_if_any()


def check_embed(request: inference_service_pb2.EmbedRequest) -> None:
    """Requires texts that can be turned into vectors."""
    violations = Violations()
    check_model(violations, "model", request.model)
    if not 1 <= len(request.texts) <= MAX_TEXTS:
        violations.add("texts", f"are {len(request.texts)}; 1 to {MAX_TEXTS} are taken")
    for index, text in enumerate(request.texts[:MAX_TEXTS]):
        if not text.strip():
            violations.add(f"texts[{index}]", "is empty")
    violations.raise_if_any()


def check_count_tokens(request: inference_service_pb2.CountTokensRequest) -> None:
    """Requires a conversation that can be counted."""
    violations = Violations()
    check_model(violations, "model", request.model)
    _check_messages(violations, request.messages)
    _check_tools(violations, request.tools)
    violations.raise_if_any()


def check_register(request: model_service_pb2.RegisterModelRequest) -> None:
    """Requires a registration that can be made."""
    violations = Violations()
    if not request.model_id:
        violations.add("model_id", "is required")
    elif len(request.model_id) > 200 or not _MODEL_ID.fullmatch(request.model_id):
        violations.add("model_id", "has letters, digits, `.`, `_`, `-`, `:`, and `/` within; at most 200")
    for field in ("provider_id", "provider_model_id", "request_id"):
        if len(getattr(request, field)) > 400:
            violations.add(field, "is longer than 400 characters")
    if request.type not in model_pb2.ModelType.values():
        violations.add("type", f"{request.type} is unknown to this version")
    if len(request.metadata) > 32:
        violations.add("metadata", f"has {len(request.metadata)} entries; at most 32 are kept")
    for key, value in request.metadata.items():
        if not key or len(key) > 64 or len(value) > 512:
            violations.add(f"metadata[{key[:64]!r}]", "keys have 1 to 64 characters, values at most 512")
    violations.raise_if_any()


def _check_messages(violations: Violations, messages: Sequence[message_pb2.Message]) -> None:
    if not messages:
        violations.add("messages", "is required: at least one message")
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if message.role not in message_pb2.Role.values() or message.role == message_pb2.ROLE_UNSPECIFIED:
            violations.add(f"{field}.role", "is required")
        if message.role == message_pb2.ROLE_TOOL:
            if message.call_id not in open_calls:
                violations.add(f"{field}.call_id", f"{message.call_id[:64]!r} answers no open call before it")
            else:
                open_calls.remove(message.call_id)
        elif open_calls:
            violations.add(field, f"comes before the result of the call {open_calls[0][:64]!r}")
            open_calls = []
        if message.role == message_pb2.ROLE_ASSISTANT:
            open_calls = [call.call_id for call in message.tool_calls]
        for number, part in enumerate(message.parts):
            if part.WhichOneof("content") is None:
                violations.add(f"{field}.parts[{number}]", "has no content: set `text`")
            elif part.WhichOneof("content") == "image":
                violations.raise_if_any()
                raise Unimplemented("images in messages")
    if open_calls:
        violations.add("messages", f"end before the result of the call {open_calls[0][:64]!r}")


def _check_sampling(violations: Violations, sampling: generation_pb2.SamplingParameters) -> None:
    field = "sampling_parameters"
    strategy = sampling.WhichOneof("strategy")
    if strategy in {"top_p", "top_k"}:
        chosen = sampling.top_p if strategy == "top_p" else sampling.top_k
        if chosen.HasField("temperature") and not 0 < chosen.temperature <= 2:
            violations.add(f"{field}.{strategy}.temperature", "is above 0 and at most 2 (for 0 choose `greedy`)")
    if strategy == "top_p" and sampling.top_p.HasField("top_p") and not 0 < sampling.top_p.top_p <= 1:
        violations.add(f"{field}.top_p.top_p", "is above 0 and at most 1")
    if strategy == "top_k" and sampling.top_k.top_k < 1:
        violations.add(f"{field}.top_k.top_k", "is at least 1")
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        violations.add(f"{field}.max_tokens", "is at least 1")
    if sampling.HasField("repetition_penalty") and not 0 < sampling.repetition_penalty <= 2:
        violations.add(f"{field}.repetition_penalty", "is above 0 and at most 2")
    if len(sampling.stop_sequences) > 8 or any(not text for text in sampling.stop_sequences):
        violations.add(f"{field}.stop_sequences", "are at most 8, none empty")


def _check_tools(violations: Violations, tools: Sequence[generation_pb2.ToolDefinition]) -> set[str]:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", tool.name):
            violations.add(f"tools[{index}].name", "has 1 to 64 letters, digits, `_`, `-` or `.`")
        if tool.name in names:
            violations.add(f"tools[{index}].name", f"{tool.name!r} is there twice")
        names.add(tool.name)
        if tool.parameters_json_schema:
            _check_schema(violations, f"tools[{index}].parameters_json_schema", tool.parameters_json_schema)
    return names


def _check_response_format(violations: Violations, form: generation_pb2.ResponseFormat) -> None:
    match form.WhichOneof("format"):
        case "json_schema":
            _check_schema(violations, "response_format.json_schema", form.json_schema)
        case "grammar":
            if not form.grammar.strip():
                violations.add("response_format.grammar", "is empty")
        case None:
            pass


def _check_schema(violations: Violations, field: str, schema: str) -> None:
    try:
        parsed = json.loads(schema)
        if not isinstance(parsed, dict):
            violations.add(field, "is no JSON object")
            return
        Draft202012Validator.check_schema(parsed)
    except ValueError as error:
        violations.add(field, f"is no JSON: {error}")
    except SchemaError as error:
        violations.add(field, f"is no JSON schema: {error.message[:300]}")
    except RecursionError:
        violations.add(field, "is nested too deeply")
