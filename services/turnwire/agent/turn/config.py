"""The configuration a turn runs under: the agent's, with the turn's own changes, pinned by its hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from turnwire.agent.v1 import agent_pb2, turn_pb2
from turnwire.common.v1 import generation_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

DEFAULT_MAX_ITERATIONS = 10
DEFAULT_PAUSE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """A configuration as the loop uses it. Its `model` is `provider_id/model_id`."""

    config: agent_pb2.AgentConfig
    digest: str
    functions: dict[str, generation_pb2.ToolDefinition] = field(default_factory=dict)
    """The caller's functions, by name."""
    pause_seconds: float = DEFAULT_PAUSE_SECONDS
    """How long the turn waits for input."""

    @property
    def max_iterations(self) -> int:
        """At most so many inferences."""
        return self.config.max_iterations if self.config.HasField("max_iterations") else DEFAULT_MAX_ITERATIONS

    @property
    def provider_id(self) -> str:
        """The provider that serves the model."""
        return self.config.model.partition("/")[0]

    @property
    def model_id(self) -> str:
        """The model."""
        return self.config.model.partition("/")[2]


def pin(config: agent_pb2.AgentConfig, *, pause_seconds: float = DEFAULT_PAUSE_SECONDS) -> TurnConfig:
    """Returns a configuration with its hash and its tools by name."""
    body = config.SerializeToString(deterministic=True)
    functions = {
        tool.function.definition.name: tool.function.definition
        for tool in config.tools
        if tool.WhichOneof("tool") == "function"
    }
    digest = hashlib.sha256(body).hexdigest()
    return TurnConfig(config=config, digest=digest, functions=functions, pause_seconds=pause_seconds)


def overridden(config: agent_pb2.AgentConfig, overrides: turn_pb2.TurnOverrides) -> agent_pb2.AgentConfig:
    """Returns an agent's configuration with a turn's changes."""
    result = agent_pb2.AgentConfig()
    result.CopyFrom(config)
    fields: list[FieldDescriptor] = (
        [agent_pb2.AgentConfig.DESCRIPTOR.fields_by_name[path] for path in overrides.mask.paths]
        if overrides.mask.paths
        else [descriptor for descriptor, _ in overrides.config.ListFields()]
    )
    for descriptor in fields:
        result.ClearField(descriptor.name)  # pyright: ignore[reportArgumentType] - the names come from the descriptor
    for descriptor in fields:
        chosen = agent_pb2.AgentConfig()
        chosen.CopyFrom(overrides.config)
        for other, _ in overrides.config.ListFields():
            if other.name != descriptor.name:
                chosen.ClearField(other.name)  # pyright: ignore[reportArgumentType] - as above
        result.MergeFrom(chosen)
    return result


@lru_cache(maxsize=512)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema) if schema else {"type": "object"})


def argument_problem(definition: generation_pb2.ToolDefinition, arguments_json: str) -> tuple[str, str] | None:
    """Returns (path, problem) of arguments that do not fit a tool's schema, or None when they do."""
    try:
        arguments: Any = json.loads(arguments_json or "{}")
    except ValueError as error:
        return "$", f"the arguments are no JSON: {error}"
    if not isinstance(arguments, dict):
        return "$", "the arguments are no JSON object"
    problem = next(iter(_validator(definition.parameters_json_schema).iter_errors(arguments)), None)
    return (problem.json_path, problem.message[:500]) if problem is not None else None
