"""What the client needs, what it costs to load, and a method for all that the services serve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.client.proxy import proxied
from tests.mesh.asking import session_of
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, step_pb2
from turnwire.client import Client, function_tool
from turnwire.errors import DeadlineExceeded, EtagMismatch, ModelCapability, Unavailable
from turnwire.inference.v1 import inference_service_pb2, model_service_pb2
from turnwire.testing.mesh import running_mesh

SERVICES = Path(__file__).resolve().parents[2] / "services"
# What the client may load: its own, the contract, the errors, the fold.
OWN = {"client", "errors", "fold", "ids"}
RUNTIME = {
    f"turnwire.runtime.{name}" for name in ("channels", "directory", "identity", "steady_clock", "trace_context")
}


def _loaded(statement: str) -> set[str]:
    """The modules that a fresh process has loaded after a statement."""
    code = f"import sys; {statement}; import json; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SERVICES)}
    ).stdout
    return set(json.loads(output))


def test_the_client_loads_no_service_and_nothing_heavy():
    loaded = _loaded("import turnwire.client")
    heavy = {"aiohttp", "click", "jsonschema", "numpy", "pydantic", "rich", "structlog", "uvloop", "xllamacpp", "yaml"}
    assert set() == heavy & loaded
    for name in loaded:
        parts = name.split(".")
        if parts[0] != "turnwire" or len(parts) == 1 or "v1" in parts:
            continue
        contract_only = parts[1] in {"agent", "common", "inference"} and len(parts) == 2
        runtime = name == "turnwire.runtime" or name in RUNTIME
        assert parts[1] in OWN or contract_only or runtime, f"the client loads {name}"


def test_a_whole_turn_loads_no_settings_where_an_address_is_given():
    statement = (
        "import asyncio; from turnwire.client import Client\n"
        "async def main():\n"
        "    async with Client.connect('127.0.0.1:9', inference_address='127.0.0.1:9') as client:\n"
        "        client.run_turn('sess_1', 'hello')\n"
        "asyncio.run(main())\n"
    )
    code = json.dumps(statement)
    assert set() == {"pydantic", "yaml"} & _loaded(f"exec({code})")


# RPCs that a version does not serve yet, and those that are streams or have a method of another name.
_ELSEWHERE = {"RunTurn", "WatchTurn", "SteerTurn", "ExportTurn", "ImportTurn", "ChatCompletion", "Completion"}


def test_every_rpc_that_is_served_has_a_method():
    for module in (agent_service_pb2, model_service_pb2, inference_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for rpc in service.methods:
                if rpc.name in _ELSEWHERE:
                    continue
                words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in rpc.name)
                assert hasattr(Client, words.removeprefix("_")), f"the client has no method for {rpc.name}"


async def test_turns_steps_and_sessions_are_read_and_changed():
    async with running_mesh() as mesh, mesh.client() as client:
        session_id = await session_of(client)
        turn = await client.run_turn(session_id, "hello", metadata={"a": "1"}).result()

        (step,) = (await client.list_steps(turn.turn_id)).steps
        assert step == await client.get_step(turn.turn_id, step.step_id)
        assert (step_pb2.STEP_TYPE_INFERENCE, "hello") == (step.type, step.inference.text)

        assert {"b": "2"} == dict((await client.update_turn(turn.turn_id, {"b": "2"})).metadata)
        assert {"b": "2"} == dict((await client.get_turn(turn.turn_id)).metadata)

        session = await client.get_session(session_id)
        session.title = "Talk"
        session.metadata["kept"] = "no"
        changed = await client.update_session(session, ["title"])
        assert ("Talk", {}) == (changed.title, dict(changed.metadata))
        assert "yes" == (await client.fork_session(session_id, title="fork", metadata={"fork": "yes"})).metadata["fork"]


async def test_versions_of_an_agent_are_listed_and_an_old_etag_deletes_nothing():
    async with running_mesh() as mesh, mesh.client() as client:
        agent = await client.create_agent(agent_pb2.AgentConfig(model="scripted", instructions="one"))
        old = agent.etag
        agent.config.instructions = "two"
        agent = await client.update_agent(agent, ["config.instructions"])
        page = await client.list_agent_versions(agent.agent_id, page_size=1)
        assert ["two"] == [each.config.instructions for each in page.agents]
        rest = await client.list_agent_versions(agent.agent_id, page_token=page.next_page_token)
        assert ["one"] == [each.config.instructions for each in rest.agents]

        with pytest.raises(EtagMismatch):
            await client.delete_agent(agent.agent_id, etag=old)
        await client.delete_agent(agent.agent_id, etag=agent.etag)


async def test_models_are_asked_without_an_agent():
    async with running_mesh() as mesh, mesh.client() as client:
        assert 3 == (await client.count_tokens("scripted", "one two three")).prompt_tokens
        with pytest.raises(ModelCapability):
            await client.embed("scripted", ["text"])


async def test_a_call_ends_at_the_clients_timeout():
    async with running_mesh() as mesh, proxied(mesh.address("agent")) as proxy:
        async with mesh.client(address=proxy.address, call_timeout=0.2) as client:
            proxy.hold()
            with pytest.raises(DeadlineExceeded, match="agent"):
                await client.get_turn("turn_1")


async def test_a_mesh_that_is_not_there_is_named_with_what_to_do():
    async with Client.connect("127.0.0.1:9") as client:
        with pytest.raises(Unavailable, match="turnwire status"):
            await client.get_turn("turn_1")


def _plan(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """A plan of the weather.

    Only for Europe.
    """
    return {"city": city, "days": days, "unit": unit}


def test_a_function_is_a_tool_by_its_name_docstring_and_annotations():
    definition = function_tool(_plan).function.definition
    assert ("_plan", "A plan of the weather.\n\nOnly for Europe.") == (definition.name, definition.description)
    expected = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "default": 1},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    assert expected == json.loads(definition.parameters_json_schema)
    renamed = function_tool(_plan, name="plan", description="Plans.").function.definition
    assert ("plan", "Plans.") == (renamed.name, renamed.description)


def _by_position(city: str, /) -> str:
    return city


def _of_a_process(process: subprocess.Popen[bytes]) -> str:
    return str(process.pid)


@pytest.mark.parametrize("function", [_by_position, _of_a_process])
def test_a_function_that_no_model_can_call_is_refused(function: Any):
    with pytest.raises(TypeError, match=f"{function.__name__} is no tool"):
        function_tool(function)


async def test_a_tool_of_a_function_is_checked_and_called_through_the_mesh():
    rules = [{"contains": "plan", "calls": [{"name": "_plan", "arguments": {"city": "Rome", "days": 2}}]}]
    async with running_mesh(rules=rules) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[function_tool(_plan)])
        turn = await client.run_turn(session, "plan it", tools={"_plan": _plan}).result()
        assert '{"city":"Rome","days":2,"unit":"C"}' == turn.output.parts[0].text
