"""The registry of tools: what providers bring, and what a tenant registers, which outlives a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.search_servers import fake_search
from tests.tool_executor.calling import CODE, KEYS, SECRET, TWO_TENANTS, calling, executor_of, searching
from turnwire.common.v1 import generation_pb2
from turnwire.errors import AlreadyExists, IdempotencyConflict, InvalidArgument, NotFound, NotServed, ResourceInUse
from turnwire.testing.mesh import running_mesh
from turnwire.tool_executor.v1 import tool_service_pb2 as messages

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tool_executor.calling import Executor

pytestmark = pytest.mark.mesh
SCHEMA = '{"type":"object","properties":{"query":{"type":"string"}},"required":["query"]}'


def _registration(**changed: Any) -> messages.RegisterToolRequest:
    definition = generation_pb2.ToolDefinition(
        name="docs", description="Searches the docs.", parameters_json_schema=SCHEMA
    )
    given: dict[str, Any] = {
        "tool_id": "docs",
        "provider_id": "tavily",
        "definition": definition,
        "metadata": {"a": "b"},
    }
    return messages.RegisterToolRequest(**(given | changed))


async def _listed(executor: Executor) -> list[str]:
    return [tool.tool_id for tool in (await executor.call("ListTools", messages.ListToolsRequest())).tools]


async def test_tools_come_with_their_providers():
    async with fake_search() as fake, executor_of(CODE, searching(fake)) as executor:
        tools = (await executor.call("ListTools", messages.ListToolsRequest())).tools

    assert [("code_interpreter", False, True), ("web_search", True, True)] == [
        (tool.tool_id, tool.idempotent, tool.built_in) for tool in tools
    ]
    assert {"code_interpreter", "web_search"} == {tool.definition.name for tool in tools}
    # The prompt of the ready-made agent stays short: its tokens are counted in `mesh/test_assistant.py`.
    assert sum(len(tool.definition.SerializeToString()) for tool in tools) < 800


async def test_a_registration_outlives_a_restart_and_its_provider(tmp_path: Path):
    async with fake_search() as fake:
        async with executor_of(searching(fake), folder=tmp_path) as executor:
            made = (await executor.call("RegisterTool", _registration())).tool
        async with executor_of(searching(fake), folder=tmp_path) as executor:
            assert made == (await executor.call("GetTool", messages.GetToolRequest(tool_id="docs"))).tool
            assert made == (await executor.call("GetTool", messages.GetToolRequest(tool_id="tavily/docs"))).tool
            assert "Zweite" in (await executor.run("docs", {"query": "x"})).result.content
        async with executor_of(folder=tmp_path) as executor:
            with pytest.raises(NotServed):
                await executor.run("docs", {"query": "x"}, "call_2")
            await executor.call("UnregisterTool", messages.UnregisterToolRequest(tool_id="docs"))
            assert [] == await _listed(executor)

    assert ("docs", "tavily", {"a": "b"}, False) == (made.tool_id, made.provider_id, dict(made.metadata), made.built_in)


async def test_an_id_is_taken_once_and_a_repeat_is_safe():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        made = (await executor.call("RegisterTool", _registration(request_id="r"))).tool
        again = (await executor.call("RegisterTool", _registration(request_id="r"))).tool
        with pytest.raises(IdempotencyConflict):
            await executor.call("RegisterTool", _registration(request_id="r", tool_id="other"))
        with pytest.raises(AlreadyExists):
            await executor.call("RegisterTool", _registration())
        with pytest.raises(AlreadyExists):
            await executor.call("RegisterTool", _registration(tool_id="web_search"))
        with pytest.raises(ResourceInUse):
            await executor.call("UnregisterTool", messages.UnregisterToolRequest(tool_id="web_search"))
        with pytest.raises(NotFound):
            await executor.call("RegisterTool", _registration(provider_id="nobody", tool_id="x"))

    assert made == again


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"tool_id": "a b"}, "tool_id"),
        ({"config_json": "{"}, "config_json"),
        ({"config_json": "[]"}, "config_json"),
        ({"config_json": '{"max_results": 99}'}, "config_json.max_results"),
        ({"config_json": '{"colour": "red"}'}, "config_json.colour"),
        ({"definition": generation_pb2.ToolDefinition(name="a b")}, "definition.name"),
        (
            {"definition": generation_pb2.ToolDefinition(name="x", parameters_json_schema="{")},
            "definition.parameters_json_schema",
        ),
        (
            {"definition": generation_pb2.ToolDefinition(name="x", parameters_json_schema='{"type": "nothing"}')},
            "definition.parameters_json_schema",
        ),
        (
            {"definition": generation_pb2.ToolDefinition(name="x", parameters_json_schema='{"type": "object"}')},
            "definition.parameters_json_schema",
        ),
        (
            {
                "definition": generation_pb2.ToolDefinition(
                    name="x", parameters_json_schema='{"type": "object", "properties": {"query": {}}}'
                )
            },
            "definition.parameters_json_schema",
        ),
    ],
    ids=str,
)
async def test_what_cannot_be_registered_is_named(changed: dict[str, Any], field: str):
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        with pytest.raises(InvalidArgument) as raised:
            await executor.call("RegisterTool", _registration(**changed))
        assert ["web_search"] == await _listed(executor)

    assert [field] == [each.field for each in raised.value.violations]


async def test_registrations_of_another_tenant_are_not_there():
    async with (
        fake_search() as fake,
        running_mesh(
            services=("tool_executor",), providers={"tool_executor": [searching(fake)]}, access=TWO_TENANTS
        ) as mesh,
        calling(mesh, KEYS["alice"]) as alice,
        calling(mesh, KEYS["bob"]) as bob,
    ):
        await alice.call("RegisterTool", _registration())
        with pytest.raises(NotFound):
            await bob.call("GetTool", messages.GetToolRequest(tool_id="docs"))
        with pytest.raises(NotFound):
            await bob.run("docs", {"query": "x"})
        with pytest.raises(NotFound):
            await bob.call("UnregisterTool", messages.UnregisterToolRequest(tool_id="docs"))
        assert ["web_search"] == await _listed(bob)
        assert ["docs", "web_search"] == await _listed(alice)


async def test_tools_are_listed_in_pages():
    async with fake_search() as fake, executor_of(searching(fake), access=SECRET) as executor:
        for number in range(5):
            await executor.call("RegisterTool", _registration(tool_id=f"tool_{number}"))
        got: list[str] = []
        token = ""
        while True:
            page = await executor.call("ListTools", messages.ListToolsRequest(page_size=4, page_token=token))
            got += [tool.tool_id for tool in page.tools]
            token = page.next_page_token
            if not token:
                break

    assert [*(f"tool_{number}" for number in range(5)), "web_search"] == got
