"""The turn that is hit: every kind of step, and three tools, of which two have effects that somebody counts.

A picture is made, which somebody pays for; a search, which may be made again; code that notes its call in a file of the
session's workspace; and a function of the caller, for which the turn pauses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.agent.v1 import agent_pb2
from turnwire.common.v1 import generation_pb2, message_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION = "Plan the voyage, with the harpoon."
ORDERS = message_pb2.Attachment(name="orders.txt", mime_type="text/plain", text="The voyage goes north.")
"""Goes with the question, and into a bank of the session."""
AFTERWARDS = "And afterwards?"
"""What is asked in a further turn, which waits for the end of this one."""
HOME = "Home again."
WORDS = 40
ANSWER = "".join(f"w{number} " for number in range(1, WORDS + 1))
NOTES = "notes.txt"
_NOTING = f"""import os
with open({NOTES!r}, 'a') as notes:
    notes.write(os.environ['TURNWIRE_CALL_ID'] + '\\n')
print('noted')"""
READING = f"import os\nprint(open({NOTES!r}).read() if os.path.exists({NOTES!r}) else '')"
APPROVED = "The captain approves."
FUNCTION = "ask_the_captain"

RULES: list[dict[str, Any]] = [
    {"contains": "What to look up", "text": "voyage harpoon"},
    {"contains": AFTERWARDS, "after_tool": False, "text": HOME},
    {
        "contains": "voyage",
        "after_tool": False,
        "pieces": ["Let ", "me ", "look. "],
        "tokens_per_second": 100,
        "calls": [
            {"name": "photogen", "arguments": {"prompt": "a harpoon"}},
            {"name": "web_search", "arguments": {"query": "voyages"}},
        ],
    },
    {
        "after_tool": True,
        "contains": "example.org/turnwire",
        "calls": [{"name": "code_interpreter", "arguments": {"code": _NOTING}}],
    },
    {"after_tool": True, "contains": APPROVED, "tokens": WORDS, "tokens_per_second": 200},
    {"after_tool": True, "calls": [{"name": FUNCTION, "arguments": {"question": "May we?"}}]},
]
SHIELDS = ["house-rules", "secrets"]
HOUSE_RULES = {"rules": [{"category": "weapon", "words": ["harpoon"], "level": "warn"}]}
BANK = "library"


def config() -> agent_pb2.AgentConfig:
    """Returns the agent that runs it."""
    schema = '{"type":"object","properties":{"question":{"type":"string"}},"required":["question"]}'
    function = generation_pb2.ToolDefinition(name=FUNCTION, description="Asks.", parameters_json_schema=schema)
    tools = [
        agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=name))
        for name in ("photogen", "code_interpreter")
    ]
    search = agent_pb2.AgentTool(
        registered=agent_pb2.RegisteredTool(tool_id="web_search"), input_shields=SHIELDS, output_shields=SHIELDS
    )
    written = agent_pb2.LlmQueryGenerator(template="What to look up for: {{messages}}")
    return agent_pb2.AgentConfig(
        model="scripted",
        input_shields=SHIELDS,
        output_shields=SHIELDS,
        retrieval=agent_pb2.RetrievalConfig(bank_ids=[BANK], llm=written),
        tools=[*tools, search, agent_pb2.AgentTool(function=agent_pb2.FunctionTool(definition=function))],
    )


def providers(vectors: dict[str, Any], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the providers of all services: real ones, but for the model that writes."""
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}
    rules = {
        "provider_id": "house",
        "provider_type": "inline::rules",
        "config": {"shields": {"house-rules": HOUSE_RULES}},
    }
    return {
        "inference": [scripted, vectors],
        "safety": [rules, {"provider_id": "secrets", "provider_type": "inline::secrets"}],
        "memory": [{"provider_id": "vectors", "provider_type": "inline::qdrant-edge"}],
        "tool_executor": [{"provider_id": "code", "provider_type": "inline::code-interpreter"}, *tools],
    }
