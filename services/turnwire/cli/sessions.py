"""`turnwire sessions`."""

from __future__ import annotations

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import all_pages, print_document, print_message, print_table, shortened, when


@click.group()
def sessions() -> None:
    """List, show, begin, fork, change and delete sessions."""


@sessions.command("list")
@click.option("--agent", "agent_id", default="", help="Only of this agent.")
@json_option
@asynchronous
async def list_sessions(agent_id: str, as_json: bool) -> None:
    """List the sessions, newest first."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await all_pages(client.list_sessions, "sessions", agent_id=agent_id)
    if as_json:
        print_message(response)
        return
    rows = [
        (
            each.session_id,
            each.agent_id,
            each.last_ordinal,
            each.active_turn_id or "-",
            when(each.update_time),
            shortened(each.title),
        )
        for each in response.sessions
    ]
    print_table(("SESSION", "AGENT", "TURNS", "ACTIVE TURN", "LAST USED", "TITLE"), rows)


@sessions.command("get")
@click.argument("session_id")
@json_option
@asynchronous
async def get_session(session_id: str, as_json: bool) -> None:
    """Show a session."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        print_document(await client.get_session(session_id), as_json=as_json)


@sessions.command("create")
@click.option("--agent", "agent_id", default="assistant", show_default=True, help="The agent.")
@click.option("--title", default="", help="A title for people.")
@json_option
@asynchronous
async def create_session(agent_id: str, title: str, as_json: bool) -> None:
    """Begin a session."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        session = await client.create_session(agent_id, title=title)
    if as_json:
        print_message(session)
    else:
        click.echo(session.session_id)


@sessions.command("update")
@click.argument("session_id")
@click.option("--title", help="Another title.")
@click.option("--agent-version", type=click.IntRange(0), help="The agent's version for its turns; 0 is the newest.")
@json_option
@asynchronous
async def update_session(session_id: str, title: str | None, agent_version: int | None, as_json: bool) -> None:
    """Change the title of a session, or the version of its agent."""
    from turnwire.agent.v1 import session_pb2
    from turnwire.cli.connecting import connected

    given = {name: value for name, value in (("title", title), ("agent_version", agent_version)) if value is not None}
    if not given:
        raise click.UsageError("say what to change: --title or --agent-version")
    session = session_pb2.Session(session_id=session_id, title=title or "", agent_version=agent_version or 0)
    async with connected() as client:
        print_document(await client.update_session(session, list(given)), as_json=as_json)


@sessions.command("fork")
@click.argument("session_id")
@click.option("--turn", "turn_id", default="", help="The last turn that belongs to the fork. [the last]")
@json_option
@asynchronous
async def fork_session(session_id: str, turn_id: str, as_json: bool) -> None:
    """Begin a session with the history of another one."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        session = await client.fork_session(session_id, turn_id=turn_id)
    if as_json:
        print_message(session)
    else:
        click.echo(session.session_id)


@sessions.command("delete")
@click.argument("session_id")
@click.option("--force", is_flag=True, help="Cancel a running turn first.")
@json_option
@asynchronous
async def delete_session(session_id: str, force: bool, as_json: bool) -> None:
    """Delete a session and its turns."""
    from turnwire.agent.v1 import agent_service_pb2
    from turnwire.cli.connecting import connected

    async with connected() as client:
        await client.delete_session(session_id, force=force)
    if as_json:
        print_message(agent_service_pb2.DeleteSessionResponse())
