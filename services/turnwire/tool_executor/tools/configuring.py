"""The settings of a tool, and its description, held against what its provider knows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from turnwire.common.v1 import generation_pb2
from turnwire.errors import FieldViolation, InvalidArgument
from turnwire.runtime.settings import problems_of
from turnwire.tool_executor.v1 import tool_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

M = TypeVar("M", bound=BaseModel)


class ToolSettings(BaseModel):
    """Settings that know all their names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def settings_of(model: type[M], tool: tool_pb2.Tool, defaults: Mapping[str, Any] | None = None) -> M:
    """Returns the settings of a tool, over those of its provider.

    Raises:
        InvalidArgument: they are wrong; all violations.
    """
    try:
        values: Any = json.loads(tool.config_json) if tool.config_json else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgument.one("config_json", f"is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidArgument.one("config_json", "is one JSON object")
    try:
        return model.model_validate({**(defaults or {}), **values})
    except ValidationError as error:
        raise InvalidArgument(
            [
                FieldViolation(".".join(["config_json", *map(str, place)]), expected)
                for place, expected in problems_of(error, model)
            ]
        ) from None


def built_in(
    provider_id: str, name: str, description: str, schema: Mapping[str, Any], *, idempotent: bool
) -> tool_pb2.Tool:
    """Returns a tool that comes with a provider."""
    return tool_pb2.Tool(
        tool_id=name,
        provider_id=provider_id,
        definition=generation_pb2.ToolDefinition(
            name=name, description=description, parameters_json_schema=json.dumps(schema, separators=(",", ":"))
        ),
        idempotent=idempotent,
        built_in=True,
    )


def described_as(tool: tool_pb2.Tool, origin: tool_pb2.Tool, arguments: Sequence[str]) -> None:
    """Completes the description of a registered tool from the provider's own, which it has to have room for.

    Raises:
        InvalidArgument: the schema has none of the arguments that the provider reads.
    """
    definition = tool.definition
    definition.description = definition.description or origin.definition.description
    if not definition.parameters_json_schema:
        definition.parameters_json_schema = origin.definition.parameters_json_schema
        return
    schema: dict[str, Any] = json.loads(definition.parameters_json_schema)
    properties: Any = schema.get("properties")
    missing = [name for name in arguments if not isinstance(properties, dict) or name not in properties]
    if missing:
        raise InvalidArgument.one(
            "definition.parameters_json_schema", f"has to have the properties that the provider reads: {missing}"
        )
    required: Any = schema.get("required", [])
    optional = [name for name in arguments if name not in required]
    if optional:
        raise InvalidArgument.one(
            "definition.parameters_json_schema", f"has to require what the provider cannot do without: {optional}"
        )
