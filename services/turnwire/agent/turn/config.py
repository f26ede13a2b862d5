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
MEMORY_SEARCH = "memory_search"
CODE_INTERPRETER = "code_interpreter"
_ALIASES = {"brave_search": "web_search"}
"""Names that models of the Llama family were taught for tools of ours."""


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """A configuration as the loop uses it. Its `model` is `provider_id/model_id`."""

    config: agent_pb2.AgentConfig
    digest: str
    tools: dict[str, agent_pb2.AgentTool] = field(default_factory=dict)
    """The tools, by the names that the model uses."""
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

    @property
    def definitions(self) -> list[generation_pb2.ToolDefinition]:
        """What the model is offered, in the order of the agent."""
        return [definition_of(tool) for tool in self.tools.values()]

    @property
    def asks_about_unknown_outcomes(self) -> bool:
        """True when a call whose outcome was lost waits for a decision; else the model is told."""
        return self.config.unknown_outcome_policy != agent_pb2.UNKNOWN_OUTCOME_POLICY_TELL_MODEL

    def holds_results(self, tool_name: str) -> bool:
        """True when the results of a tool wait for their shields."""
        tool = self.tool(tool_name)
        return tool is not None and bool(tool.output_shields)

    def tool(self, name: str) -> agent_pb2.AgentTool | None:
        """Returns the tool that a model means by a name, or None."""
        return self.tools.get(name) or self.tools.get(_ALIASES.get(name, ""))

    @property
    def files_go_to_interpreter(self) -> bool:
        """True when attachments are files for the code interpreter: it is what the model has to call.

        Otherwise they go to the session's memory bank.
        """
        choice = self.config.tool_choice
        match choice.mode:
            case generation_pb2.ToolChoice.MODE_NAMED:
                return choice.name == CODE_INTERPRETER
            case generation_pb2.ToolChoice.MODE_REQUIRED:
                return list(self.tools) == [CODE_INTERPRETER]
            case _:
                return False


def pin(config: agent_pb2.AgentConfig, *, pause_seconds: float = DEFAULT_PAUSE_SECONDS) -> TurnConfig:
    """Returns a configuration with its hash and its tools by name."""
    digest = hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest()
    tools = {definition_of(tool).name: tool for tool in config.tools}
    return TurnConfig(config=config, digest=digest, tools=tools, pause_seconds=pause_seconds)


def definition_of(tool: agent_pb2.AgentTool) -> generation_pb2.ToolDefinition:
    """Returns what a model reads of a tool. A registered one is pinned before."""
    match tool.WhichOneof("tool"):
        case "function":
            return tool.function.definition
        case "registered":
            return tool.registered.definition
        case "memory_search":
            return generation_pb2.ToolDefinition(
                name=tool.memory_search.name or MEMORY_SEARCH,
                description="Searches the documents at hand and returns the passages that fit best.",
                parameters_json_schema=_SEARCH_SCHEMA,
            )
        case "agent" | None:
            raise AssertionError("validation refuses it")


_SEARCH_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1, "description": "What to look for."}},
        "required": ["query"],
        "additionalProperties": False,
    }
)


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
        if not isinstance(arguments, dict):
            return "$", "the arguments are no JSON object"
        problem = next(iter(_validator(definition.parameters_json_schema).iter_errors(arguments)), None)
    except ValueError as error:
        return "$", f"the arguments are no JSON: {error}"
    except RecursionError:
        return "$", "the arguments are nested too deeply"
    return (problem.json_path, problem.message[:500]) if problem is not None else None
