"""`turnwire chat`: a conversation."""

from __future__ import annotations

import asyncio

import click

from turnwire.cli.options import asynchronous

_HELP = "/new begins a new session, /fork goes on in a copy of this one, /session shows its id, /quit ends (Ctrl-D too)"


@click.command()
@click.option("--agent", "agent_id", default="assistant", show_default=True, help="The agent.")
@click.option("--session", "session_id", help="Go on in this session.")
@asynchronous
async def chat(agent_id: str, session_id: str | None) -> None:
    """Talk with an agent. Ctrl-C cancels the turn, not the conversation."""
    from turnwire.cli.running import run
    from turnwire.client import Client
    from turnwire.errors import TurnwireError

    async with Client.connect() as client:
        session = session_id or (await client.create_session(agent_id)).session_id
        click.secho(f"{agent_id}, {session}. {_HELP}", err=True, dim=True)
        while True:
            try:
                said = (await asyncio.to_thread(input, "> ")).strip()
            except (EOFError, KeyboardInterrupt):
                return
            try:
                match said:
                    case "":
                        continue
                    case "/quit":
                        return
                    case "/help":
                        click.echo(_HELP, err=True)
                    case "/session":
                        click.echo(session, err=True)
                    case "/new":
                        session = (await client.create_session(agent_id)).session_id
                        click.echo(session, err=True)
                    case "/fork":
                        session = (await client.fork_session(session)).session_id
                        click.echo(session, err=True)
                    case _:
                        await run(client, client.run_turn(session, said), as_json=False, quiet=False)
            except TurnwireError as error:
                click.echo(f"Error: {error.message}", err=True)
