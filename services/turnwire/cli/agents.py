"""`turnwire agents`."""

from __future__ import annotations

from typing import Any

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import all_pages, print_document, print_message, print_table, read_message, when

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
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await all_pages(client.list_agents, "agents")
    if as_json:
        print_message(response)
        return
    rows = [
        (agent.agent_id, agent.name, agent.version, agent.config.model, when(agent.update_time))
        for agent in response.agents
    ]
    print_table(("AGENT", "NAME", "VERSION", "MODEL", "CHANGED"), rows)


@agents.command("versions")
@click.argument("agent_id")
@json_option
@asynchronous
async def list_versions(agent_id: str, as_json: bool) -> None:
    """List the versions of an agent."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await all_pages(client.list_agent_versions, "agents", agent_id=agent_id)
    if as_json:
        print_message(response)
        return
    rows = [(agent.version, agent.config.model, when(agent.update_time)) for agent in response.agents]
    print_table(("VERSION", "MODEL", "MADE"), rows)


@agents.command("get")
@click.argument("agent_id")
@click.option("--version", type=click.IntRange(0), default=0, help="Which version. [the newest]")
@json_option
@asynchronous
async def get_agent(agent_id: str, version: int, as_json: bool) -> None:
    """Show an agent."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        print_document(await client.get_agent(agent_id, version=version), as_json=as_json)


@agents.command("create")
@_file_option
@click.option("--name", default="", help="A name for people.")
@json_option
@asynchronous
async def create_agent(file: Any, name: str, as_json: bool) -> None:
    """Make an agent."""
    from turnwire.agent.v1 import agent_pb2
    from turnwire.cli.connecting import connected

    config = agent_pb2.AgentConfig()
    read_message(file, config)
    async with connected() as client:
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
    from turnwire.cli.connecting import connected

    config = agent_pb2.AgentConfig()
    read_message(file, config)
    async with connected() as client:
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
@json_option
@asynchronous
async def delete_agent(agent_id: str, force: bool, as_json: bool) -> None:
    """Delete an agent."""
    from turnwire.agent.v1 import agent_service_pb2
    from turnwire.cli.connecting import connected

    async with connected() as client:
        await client.delete_agent(agent_id, force=force)
    if as_json:
        print_message(agent_service_pb2.DeleteAgentResponse())
