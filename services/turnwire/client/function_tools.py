"""A caller's function as a tool of an agent: its name, docstring and annotations are what the model reads."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from turnwire.agent.v1 import agent_pb2
from turnwire.common.v1 import generation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable


def function_tool(function: Callable[..., Any], *, name: str = "", description: str = "") -> agent_pb2.AgentTool:
    """Returns the tool that a function is, for `AgentConfig.tools`.

    Without `name` and `description` they are those of the function. Give the function itself to `run_turn(tools=…)`
    under the same name.

    Raises:
        TypeError: a parameter has a type that JSON has not, or cannot be given by name.
    """
    from pydantic import TypeAdapter  # loads slowly
    from pydantic.errors import PydanticUserError

    called = name or function.__name__
    try:
        adapted: Any = function  # a callable is a type to pydantic, as its documentation says
        schema = TypeAdapter(adapted).json_schema()
    except PydanticUserError as error:
        raise TypeError(f"{called} is no tool: {error.message.splitlines()[0]}") from error
    if schema.get("type") != "object":
        raise TypeError(f"{called} is no tool: all its parameters have to be such that can be given by name")
    for parameter in schema.get("properties", {}).values():
        parameter.pop("title", None)
    definition = generation_pb2.ToolDefinition(
        name=called,
        description=description or inspect.getdoc(function) or "",
        parameters_json_schema=json.dumps(schema, ensure_ascii=False),
    )
    return agent_pb2.AgentTool(function=agent_pb2.FunctionTool(definition=definition))
