"""`turnwire sessions`."""

from __future__ import annotations

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import print_message, print_table, when


@click.group()
def sessions() -> None:
    """List, show, begin, fork and delete sessions."""


@sessions.command("list")
@click.option("--agent", "agent_id", default="", help="Only of this agent.")
@json_option
@asynchronous
async def list_sessions(agent_id: str, as_json: bool) -> None:
    """List the sessions, newest first."""
    from turnwire.client import Client

    async with Client.connect() as client:
        response = await client.list_sessions(agent_id=agent_id, page_size=200)
    if as_json:
        print_message(response)
        return
    rows = [
        (each.session_id, each.agent_id, each.last_ordinal, each.active_turn_id or "-", when(each.update_time))
        for each in response.sessions
    ]
    print_table(("SESSION", "AGENT", "TURNS", "ACTIVE TURN", "LAST USED"), rows)


@sessions.command("get")
@click.argument("session_id")
@json_option
@asynchronous
async def get_session(session_id: str, as_json: bool) -> None:
    """Show a session."""
    from turnwire.client import Client

    async with Client.connect() as client:
        print_message(await client.get_session(session_id))


@sessions.command("create")
@click.option("--agent", "agent_id", default="assistant", show_default=True, help="The agent.")
@click.option("--title", default="", help="A title for people.")
@json_option
@asynchronous
async def create_session(agent_id: str, title: str, as_json: bool) -> None:
    """Begin a session."""
    from turnwire.client import Client

    async with Client.connect() as client:
        session = await client.create_session(agent_id, title=title)
    if as_json:
        print_message(session)
    else:
        click.echo(session.session_id)


@sessions.command("fork")
@click.argument("session_id")
@click.option("--turn", "turn_id", default="", help="The last turn that belongs to the fork. [the last]")
@json_option
@asynchronous
async def fork_session(session_id: str, turn_id: str, as_json: bool) -> None:
    """Begin a session with the history of another one."""
    from turnwire.client import Client

    async with Client.connect() as client:
        session = await client.fork_session(session_id, turn_id=turn_id)
    if as_json:
        print_message(session)
    else:
        click.echo(session.session_id)


@sessions.command("delete")
@click.argument("session_id")
@click.option("--force", is_flag=True, help="Cancel a running turn first.")
@asynchronous
async def delete_session(session_id: str, force: bool) -> None:
    """Delete a session and its turns."""
    from turnwire.client import Client

    async with Client.connect() as client:
        await client.delete_session(session_id, force=force)
