"""`turnwire tools`."""

from __future__ import annotations

from typing import Any

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import all_pages, print_document, print_message, print_table, shortened


@click.group()
def tools() -> None:
    """List, show, register and unregister tools."""


@tools.command("list")
@json_option
@asynchronous
async def list_tools(as_json: bool) -> None:
    """List the tools."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await all_pages(client.tools.list, "tools")
    if as_json:
        print_message(response)
        return
    rows = [
        (each.tool_id, each.provider_id, "yes" if each.idempotent else "no", shortened(each.definition.description))
        for each in response.tools
    ]
    print_table(("TOOL", "PROVIDER", "REPEATABLE", ""), rows)


@tools.command("get")
@click.argument("tool_id")
@json_option
@asynchronous
async def get_tool(tool_id: str, as_json: bool) -> None:
    """Show a tool."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        print_document(await client.tools.get(tool_id), as_json=as_json)


@tools.command("register")
@click.argument("tool_id")
@click.option("--like", "like", default="", help="A tool whose description and arguments it has.")
@click.option("--provider", "provider_id", default="", help="Who runs it. [that of --like, or the only one there is]")
@click.option("--description", default="", help="What models read of it. [that of --like]")
@click.option("--parameters", "parameters_file", type=click.File(), help="The JSON Schema of its arguments, a file.")
@click.option("--config", "config_file", type=click.File(), help="Its settings, a JSON file; - reads from stdin.")
@click.option("--idempotent", is_flag=True, help="Running it twice does what running it once does.")
@json_option
@asynchronous
async def register(
    tool_id: str,
    like: str,
    provider_id: str,
    description: str,
    parameters_file: Any,
    config_file: Any,
    idempotent: bool,
    as_json: bool,
) -> None:
    """Give a tool of a provider an id, a description and settings of its own."""
    from turnwire.cli.connecting import connected
    from turnwire.common.v1 import generation_pb2

    if not like and parameters_file is None:
        raise click.UsageError("name a tool to take the arguments from (--like), or a file of them (--parameters)")
    definition = generation_pb2.ToolDefinition()
    async with connected() as client:
        if like:
            model = await client.tools.get(like)
            definition.CopyFrom(model.definition)
            provider_id = provider_id or model.provider_id
            idempotent = idempotent or model.idempotent
        definition.name = tool_id
        definition.description = description or definition.description
        if parameters_file is not None:
            definition.parameters_json_schema = parameters_file.read()
        config_json = config_file.read() if config_file is not None else ""
        tool = await client.tools.register(
            tool_id, definition, provider_id=provider_id, config_json=config_json, idempotent=idempotent
        )
    if as_json:
        print_message(tool)
    else:
        click.echo(f"{tool.provider_id}/{tool.tool_id}")


@tools.command("unregister")
@click.argument("tool_id")
@json_option
@asynchronous
async def unregister(tool_id: str, as_json: bool) -> None:
    """Take a registration back."""
    from turnwire.cli.connecting import connected
    from turnwire.tool_executor.v1 import tool_service_pb2

    async with connected() as client:
        await client.tools.unregister(tool_id)
    if as_json:
        print_message(tool_service_pb2.UnregisterToolResponse())
