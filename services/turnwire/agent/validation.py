"""What a request has to look like, checked before anything is written; all violations at once."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from turnwire.agent.turn.config import MEMORY_SEARCH
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, turn_owner_service_pb2, turn_pb2
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2
from turnwire.errors import Unimplemented
from turnwire.runtime.validation import Violations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.field_mask_pb2 import FieldMask

MAX_INPUT_BYTES = 192 * 1024
"""The text of a turn's input, or of one answer: with it no stored event passes 256 KiB."""
_MAX_INSTRUCTIONS = 128 * 1024
_MAX_ATTACHMENT_BYTES = 1024 * 1024
_TURN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_UPDATABLE_AGENT_FIELDS = frozenset({"name", "description", "metadata", "config"})
_UPDATABLE_SESSION_FIELDS = frozenset({"title", "metadata", "agent_version"})


def check_id(violations: Violations, field: str, value: str) -> None:
    """Requires an id that could be one of ours."""
    if not value:
        violations.add(field, "is required")
    elif len(value) > 200:
        violations.add(field, f"is {len(value)} characters long; ids have at most 200")


def check_metadata(violations: Violations, field: str, metadata: Mapping[str, str]) -> None:
    """Bounds labels."""
    if len(metadata) > 32:
        violations.add(field, f"has {len(metadata)} entries; at most 32 are kept")
    for key, value in metadata.items():
        if not key or len(key) > 64:
            violations.add(f"{field}[{key[:64]!r}]", "keys have 1 to 64 characters")
        if len(value) > 512:
            violations.add(f"{field}[{key[:64]!r}]", f"is {len(value)} characters long; values have at most 512")


def check_length(violations: Violations, field: str, value: str, most: int) -> None:
    """Bounds a text, in characters."""
    if len(value) > most:
        violations.add(field, f"is {len(value)} characters long; at most {most} are allowed")


def check_mask(violations: Violations, mask: FieldMask, message_fields: frozenset[str], nested: str = "") -> None:
    """Requires that a mask names fields that can be changed."""
    for path in mask.paths:
        head, _, tail = path.partition(".")
        known = head in message_fields and not tail
        if nested and head == nested and tail:
            known = tail in agent_pb2.AgentConfig.DESCRIPTOR.fields_by_name
        if not known:
            allowed = ", ".join(sorted(message_fields))
            violations.add("update_mask", f"{path[:100]!r} is no field that can be changed; there are: {allowed}")


def check_agent_texts(violations: Violations, prefix: str, name: str, description: str) -> None:
    """Bounds what people read of an agent."""
    check_length(violations, f"{prefix}name", name, 200)
    check_length(violations, f"{prefix}description", description, 2000)


def check_agent_mask(violations: Violations, mask: FieldMask) -> None:
    """Requires the fields of an agent that can be changed."""
    check_mask(violations, mask, _UPDATABLE_AGENT_FIELDS, nested="config")


def check_session_mask(violations: Violations, mask: FieldMask) -> None:
    """Requires the fields of a session that can be changed."""
    check_mask(violations, mask, _UPDATABLE_SESSION_FIELDS)


def check_config(config: agent_pb2.AgentConfig, field: str = "config") -> None:
    """Requires a configuration that a turn can run under.

    Raises:
        InvalidArgument: with all that is wrong.
        Unimplemented: it asks for something that this version does not do yet.
    """
    violations = Violations()
    if not config.model:
        violations.add(f"{field}.model", "is required; `turnwire models list` shows what there is")
    check_length(violations, f"{field}.model", config.model, 400)
    if len(config.instructions.encode()) > _MAX_INSTRUCTIONS:
        violations.add(f"{field}.instructions", f"is larger than {_MAX_INSTRUCTIONS} bytes")
    if config.HasField("max_iterations") and not 1 <= config.max_iterations <= 100:
        violations.add(f"{field}.max_iterations", f"is {config.max_iterations}; it goes from 1 to 100")
    _check_sampling(violations, f"{field}.sampling_parameters", config.sampling_parameters)
    names = _check_tools(violations, f"{field}.tools", config)
    _check_tool_choice(violations, f"{field}.tool_choice", config.tool_choice, names)
    if config.tool_prompt_format not in generation_pb2.ToolPromptFormat.values():
        violations.add(f"{field}.tool_prompt_format", f"{config.tool_prompt_format} is unknown to this version")
    if config.response_format.WhichOneof("format") == "json_schema":
        _check_schema(violations, f"{field}.response_format.json_schema", config.response_format.json_schema)
    _check_limits(violations, f"{field}.limits", config.limits)
    _check_shields(violations, f"{field}.input_shields", config.input_shields)
    _check_shields(violations, f"{field}.output_shields", config.output_shields)
    _check_retrieval(violations, f"{field}.retrieval", config.retrieval)
    if config.shield_failure_policy not in agent_pb2.ShieldFailurePolicy.values():
        violations.add(f"{field}.shield_failure_policy", f"{config.shield_failure_policy} is unknown to this version")
    if config.unknown_outcome_policy not in agent_pb2.UnknownOutcomePolicy.values():
        violations.add(f"{field}.unknown_outcome_policy", f"{config.unknown_outcome_policy} is unknown to this version")
    violations.raise_if_any()
    _refuse_unbuilt(config)


def _check_sampling(violations: Violations, field: str, sampling: generation_pb2.SamplingParameters) -> None:
    match sampling.WhichOneof("strategy"):
        case "top_p":
            _check_temperature(violations, f"{field}.top_p", sampling.top_p)
            if sampling.top_p.HasField("top_p") and not 0 < sampling.top_p.top_p <= 1:
                violations.add(f"{field}.top_p.top_p", f"is {sampling.top_p.top_p:g}; it is above 0 and at most 1")
        case "top_k":
            _check_temperature(violations, f"{field}.top_k", sampling.top_k)
            if sampling.top_k.top_k < 1:
                violations.add(f"{field}.top_k.top_k", f"is {sampling.top_k.top_k}; it is at least 1")
        case _:
            pass
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        violations.add(f"{field}.max_tokens", f"is {sampling.max_tokens}; it is at least 1")
    if sampling.HasField("repetition_penalty") and not 0 < sampling.repetition_penalty <= 2:
        violations.add(
            f"{field}.repetition_penalty", f"is {sampling.repetition_penalty:g}; it is above 0 and at most 2"
        )
    if len(sampling.stop_sequences) > 8 or any(not text for text in sampling.stop_sequences):
        violations.add(f"{field}.stop_sequences", "are at most 8, none empty")


def _check_temperature(
    violations: Violations, field: str, strategy: generation_pb2.TopPSampling | generation_pb2.TopKSampling
) -> None:
    if strategy.HasField("temperature") and not 0 < strategy.temperature <= 2:
        violations.add(
            f"{field}.temperature",
            f"is {strategy.temperature:g}; it is above 0 and at most 2 (for 0 choose `greedy`)",
        )


def _check_tools(violations: Violations, field: str, config: agent_pb2.AgentConfig) -> set[str]:
    names: set[str] = set()
    if len(config.tools) > 128:
        violations.add(field, f"are {len(config.tools)}; at most 128 are allowed")
    for index, tool in enumerate(config.tools):
        path = f"{field}[{index}]"
        kind = tool.WhichOneof("tool")
        _check_shields(violations, f"{path}.input_shields", tool.input_shields)
        _check_shields(violations, f"{path}.output_shields", tool.output_shields)
        _check_tool_limits(violations, f"{path}.limits", tool.limits)
        match kind:
            case None:
                violations.add(path, "names no tool: set `function`, `registered`, `memory_search` or `agent`")
            case "registered":
                check_id(violations, f"{path}.registered.tool_id", tool.registered.tool_id)
                names.add(tool.registered.tool_id)
            case "memory_search":
                names.add(_check_memory_search(violations, f"{path}.memory_search", tool.memory_search))
            case "agent" | "function":
                pass
        if kind != "function":
            continue
        definition = tool.function.definition
        if not _TOOL_NAME.fullmatch(definition.name):
            violations.add(f"{path}.function.definition.name", "has 1 to 64 letters, digits, `_`, `-` or `.`")
        if definition.name in names:
            violations.add(f"{path}.function.definition.name", f"{definition.name!r} is there twice")
        names.add(definition.name)
        check_length(violations, f"{path}.function.definition.description", definition.description, 8000)
        if definition.parameters_json_schema:
            _check_schema(
                violations, f"{path}.function.definition.parameters_json_schema", definition.parameters_json_schema
            )
    return names


def _check_shields(violations: Violations, field: str, shields: Sequence[str]) -> None:
    if len(shields) > 16:
        violations.add(field, f"are {len(shields)}; at most 16 are allowed")
    for index, shield_id in enumerate(shields):
        check_id(violations, f"{field}[{index}]", shield_id)
        if shield_id in shields[:index]:
            violations.add(f"{field}[{index}]", f"{shield_id[:64]!r} is there twice")


def _check_tool_limits(violations: Violations, field: str, limits: agent_pb2.ToolLimits) -> None:
    for descriptor, value in limits.ListFields():
        if value.ToTimedelta().total_seconds() <= 0:
            violations.add(f"{field}.{descriptor.name}", "is above 0")


def _check_memory_search(violations: Violations, field: str, tool: agent_pb2.MemorySearchTool) -> str:
    name = tool.name or MEMORY_SEARCH
    if not _TOOL_NAME.fullmatch(name):
        violations.add(f"{field}.name", "has 1 to 64 letters, digits, `_`, `-` or `.`")
    if not 0 <= tool.max_chunks <= 100:
        violations.add(f"{field}.max_chunks", f"is {tool.max_chunks}; it goes from 1 to 100")
    return name


def _check_retrieval(violations: Violations, field: str, retrieval: agent_pb2.RetrievalConfig) -> None:
    if len(retrieval.bank_ids) > 32:
        violations.add(f"{field}.bank_ids", f"are {len(retrieval.bank_ids)}; at most 32 are searched")
    for index, bank_id in enumerate(retrieval.bank_ids):
        check_id(violations, f"{field}.bank_ids[{index}]", bank_id)
    if not 0 <= retrieval.max_tokens_in_context <= 100_000:
        violations.add(f"{field}.max_tokens_in_context", f"is {retrieval.max_tokens_in_context}; at most 100,000")
    if not 0 <= retrieval.max_chunks <= 100:
        violations.add(f"{field}.max_chunks", f"is {retrieval.max_chunks}; it goes from 1 to 100")
    if math.isnan(retrieval.min_score):
        violations.add(f"{field}.min_score", "is no number")
    if retrieval.WhichOneof("query_generator") == "llm" and "{{messages}}" not in retrieval.llm.template:
        violations.add(f"{field}.llm.template", "has `{{messages}}` where the conversation goes")


def _check_tool_choice(violations: Violations, field: str, choice: generation_pb2.ToolChoice, names: set[str]) -> None:
    mode = choice.mode
    if mode not in generation_pb2.ToolChoice.Mode.values():
        violations.add(f"{field}.mode", f"{mode} is unknown to this version")
    forced = {generation_pb2.ToolChoice.MODE_REQUIRED, generation_pb2.ToolChoice.MODE_NAMED}
    if mode in forced and not names:
        violations.add(f"{field}.mode", "a call cannot be forced when there is no tool")
    if mode == generation_pb2.ToolChoice.MODE_NAMED and choice.name not in names and names:
        violations.add(f"{field}.name", f"{choice.name[:64]!r} is none of the tools: {', '.join(sorted(names))}")


def _check_schema(violations: Violations, field: str, schema: str) -> None:
    if len(schema) > 64 * 1024:
        violations.add(field, "is larger than 64 KiB")
        return
    try:
        parsed = json.loads(schema)
        Draft202012Validator.check_schema(parsed)
    except ValueError as error:
        violations.add(field, f"is no JSON: {error}")
    except SchemaError as error:
        violations.add(field, f"is no JSON schema: {error.message[:300]}")
    except RecursionError:
        violations.add(field, "is nested too deeply")
    else:
        if not isinstance(parsed, dict):
            violations.add(field, "is no JSON object")


def _check_limits(violations: Violations, field: str, limits: agent_pb2.TurnLimits) -> None:
    if limits.HasField("active_time") and limits.active_time.ToTimedelta().total_seconds() <= 0:
        violations.add(f"{field}.active_time", "is above 0")
    for name in ("total_tokens", "model_calls", "tool_calls", "cost_micros"):
        if limits.HasField(name) and getattr(limits, name) < 0:  # pyright: ignore[reportArgumentType]
            violations.add(f"{field}.{name}", "is not negative")


def _refuse_unbuilt(config: agent_pb2.AgentConfig) -> None:
    """What the contract has and this version does not do is refused: an ignored approval would be worse than none."""
    unbuilt = {
        "limits.cost_micros": config.limits.HasField("cost_micros"),
        "tools of the kind agent": any(tool.WhichOneof("tool") == "agent" for tool in config.tools),
        "approval of a tool's calls": any(tool.approval > agent_pb2.APPROVAL_POLICY_NEVER for tool in config.tools),
        "limits of a caller's function": any(
            tool.WhichOneof("tool") == "function" and tool.HasField("limits") for tool in config.tools
        ),
        "limits of a search in memory, but `total`": any(
            tool.WhichOneof("tool") == "memory_search" and _has_others_than_total(tool.limits) for tool in config.tools
        ),
    }
    for feature, used in unbuilt.items():
        if used:
            raise Unimplemented(feature)


def _has_others_than_total(limits: agent_pb2.ToolLimits) -> bool:
    return any(descriptor.name != "total" for descriptor, _ in limits.ListFields())


def check_position(request: agent_service_pb2.WatchTurnRequest | turn_owner_service_pb2.FollowTurnRequest) -> None:
    """Requires a turn and a position in its log."""
    violations = Violations()
    check_id(violations, "turn_id", request.turn_id)
    if request.after_sequence < 0:
        violations.add("after_sequence", f"must not be negative; it is {request.after_sequence}")
    violations.raise_if_any()


def check_run_turn(request: agent_service_pb2.RunTurnRequest) -> None:
    """Requires a turn that can be accepted."""
    violations = Violations()
    check_id(violations, "session_id", request.session_id)
    if request.turn_id and not _TURN_ID.fullmatch(request.turn_id):
        violations.add("turn_id", "has 1 to 64 letters, digits, `_` or `-`")
    if not request.messages:
        violations.add("messages", "is required: at least one message")
    for index, message in enumerate(request.messages):
        _check_message(violations, f"messages[{index}]", message)
    if request.messages and request.messages[-1].role == message_pb2.ROLE_ASSISTANT:
        violations.add(f"messages[{len(request.messages) - 1}].role", "the last message is the user's")
    size = sum(part.ByteSize() for message in request.messages for part in message.parts)
    if size > MAX_INPUT_BYTES:
        violations.add("messages", f"are {size} bytes; a turn takes {MAX_INPUT_BYTES}")
    check_metadata(violations, "metadata", request.metadata)
    if request.busy_policy not in agent_service_pb2.BusyPolicy.values():
        violations.add("busy_policy", f"{request.busy_policy} is unknown to this version")
    if request.disconnect_policy not in agent_service_pb2.DisconnectPolicy.values():
        violations.add("disconnect_policy", f"{request.disconnect_policy} is unknown to this version")
    for path in request.overrides.mask.paths:
        if path not in agent_pb2.AgentConfig.DESCRIPTOR.fields_by_name:
            violations.add("overrides.mask", f"{path[:100]!r} is no field of AgentConfig")
    violations.raise_if_any()


def _check_message(violations: Violations, field: str, message: message_pb2.Message) -> None:
    if message.role not in {message_pb2.ROLE_USER, message_pb2.ROLE_ASSISTANT}:
        violations.add(f"{field}.role", "is ROLE_USER, or ROLE_ASSISTANT to quote an answer")
    if not message.parts and not message.attachments:
        violations.add(f"{field}.parts", "is required: at least one part")
    for index, part in enumerate(message.parts):
        if part.WhichOneof("content") is None:
            violations.add(f"{field}.parts[{index}]", "has no content: set `text`")
    if message.tool_calls or message.call_id:
        violations.add(f"{field}.tool_calls", "belong to turns of the agent; results go through SubmitTurnInput")
    check_length(violations, f"{field}.name", message.name, 64)
    for number, attachment in enumerate(message.attachments):
        _check_attachment(violations, f"{field}.attachments[{number}]", attachment)
    if len(message.attachments) > 32:
        violations.add(f"{field}.attachments", f"are {len(message.attachments)}; at most 32 travel with a message")
    if any(part.WhichOneof("content") == "image" for part in message.parts):
        violations.raise_if_any()
        raise Unimplemented("images in messages")


def _check_attachment(violations: Violations, field: str, attachment: message_pb2.Attachment) -> None:
    check_length(violations, f"{field}.name", attachment.name, 255)
    check_length(violations, f"{field}.mime_type", attachment.mime_type, 127)
    match attachment.WhichOneof("content"):
        case None:
            violations.add(field, "has no content: set `text`, `data`, `artifact_id` or `url`")
        case "url":
            check_length(violations, f"{field}.url", attachment.url, 4096)
        case "artifact_id":
            check_id(violations, f"{field}.artifact_id", attachment.artifact_id)
        case "text" | "data":
            size = len(attachment.text.encode()) + len(attachment.data)
            if size > _MAX_ATTACHMENT_BYTES:
                violations.add(field, f"is {size} bytes; larger ones than {_MAX_ATTACHMENT_BYTES} are uploaded first")


def check_submit(request: agent_service_pb2.SubmitTurnInputRequest) -> None:
    """Requires answers that can be taken."""
    violations = Violations()
    check_id(violations, "turn_id", request.turn_id)
    check_length(violations, "request_id", request.request_id, 200)
    if not request.inputs:
        violations.add("inputs", "is required: at least one answer")
    seen: set[str] = set()
    for index, given in enumerate(request.inputs):
        kind = given.WhichOneof("input")
        if kind is None:
            violations.add(f"inputs[{index}]", "has no answer: set `tool_result` or `outcome_decision`")
            continue
        call_id = getattr(given, kind).call_id
        check_id(violations, f"inputs[{index}].{kind}.call_id", call_id)
        if call_id in seen:
            violations.add(f"inputs[{index}].{kind}.call_id", f"{call_id[:64]} is answered twice")
        seen.add(call_id)
        if kind == "outcome_decision":
            _check_decision(violations, f"inputs[{index}].outcome_decision", given.outcome_decision)
        if given.tool_result.attachments or given.outcome_decision.result.attachments:
            violations.raise_if_any()
            raise Unimplemented("attachments of tool results")
    if request.ByteSize() > MAX_INPUT_BYTES:
        violations.add("inputs", f"are {request.ByteSize()} bytes; one request takes {MAX_INPUT_BYTES}")
    violations.raise_if_any()


def _check_decision(violations: Violations, field: str, decision: turn_pb2.OutcomeDecision) -> None:
    choices = turn_pb2.OutcomeDecision
    if decision.choice not in {choices.CHOICE_RETRY, choices.CHOICE_SKIP, choices.CHOICE_PROVIDE}:
        violations.add(f"{field}.choice", "is CHOICE_RETRY, CHOICE_SKIP or CHOICE_PROVIDE")
    if decision.HasField("result") != (decision.choice == choices.CHOICE_PROVIDE):
        violations.add(f"{field}.result", "goes with CHOICE_PROVIDE, which needs it")
    if decision.result.failure.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN:
        violations.add(f"{field}.result.failure.reason", "is none that decides: choose CHOICE_SKIP")
