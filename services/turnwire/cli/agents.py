"""`turnwire agents`."""

from __future__ import annotations

from typing import Any

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import print_message, print_table, read_message, when

_file_option = click.option(
    "--from-file", "file", type=click.File(encoding="utf-8"), required=True, help="An AgentConfig in YAML or JSON."
)


@click.group()
def agents() -> None:
    """List, show, make, change and delete agents."""


@agents.command("list")
@json_option
@asynchronous
async def list_agents(as_json: bool) -> None:
    """List the agents."""
    from turnwire.client import Client

    async with Client.connect() as client:
        response = await client.list_agents(page_size=200)
    if as_json:
        print_message(response)
        return
    rows = [
        (agent.agent_id, agent.name, agent.version, agent.config.model, when(agent.update_time))
        for agent in response.agents
    ]
    print_table(("AGENT", "NAME", "VERSION", "MODEL", "CHANGED"), rows)


@agents.command("get")
@click.argument("agent_id")
@click.option("--version", type=int, default=0, help="Which version. [the newest]")
@json_option
@asynchronous
async def get_agent(agent_id: str, version: int, as_json: bool) -> None:
    """Show an agent."""
    from turnwire.client import Client

    async with Client.connect() as client:
        print_message(await client.get_agent(agent_id, version=version))


@agents.command("create")
@_file_option
@click.option("--name", default="", help="A name for people.")
@json_option
@asynchronous
async def create_agent(file: Any, name: str, as_json: bool) -> None:
    """Make an agent."""
    from turnwire.agent.v1 import agent_pb2
    from turnwire.client import Client

    config = agent_pb2.AgentConfig()
    read_message(file, config)
    async with Client.connect() as client:
        agent = await client.create_agent(config, name=name)
    if as_json:
        print_message(agent)
    else:
        click.echo(agent.agent_id)


@agents.command("update")
@click.argument("agent_id")
@_file_option
@json_option
@asynchronous
async def update_agent(agent_id: str, file: Any, as_json: bool) -> None:
    """Give an agent another configuration: a new version."""
    from turnwire.agent.v1 import agent_pb2
    from turnwire.client import Client

    config = agent_pb2.AgentConfig()
    read_message(file, config)
    async with Client.connect() as client:
        agent = await client.get_agent(agent_id)
        agent.config.CopyFrom(config)
        agent = await client.update_agent(agent, ["config"])
    if as_json:
        print_message(agent)
    else:
        click.echo(f"{agent.agent_id} version {agent.version}")


@agents.command("delete")
@click.argument("agent_id")
@click.option("--force", is_flag=True, help="Its sessions too.")
@asynchronous
async def delete_agent(agent_id: str, force: bool) -> None:
    """Delete an agent."""
    from turnwire.client import Client

    async with Client.connect() as client:
        await client.delete_agent(agent_id, force=force)
