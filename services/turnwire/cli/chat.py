"""`turnwire chat`: a conversation."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from turnwire.client import Client

_HELP = "/new begins a new session, /fork goes on in a copy of this one, /session shows its id, /quit ends (Ctrl-D too)"
_PROMPT = "> "


@click.command()
@click.option("--agent", "agent_id", help="The agent. [assistant]")
@click.option("--session", "session_id", help="Go on in this session.")
def chat(agent_id: str | None, session_id: str | None) -> None:
    """Talk with an agent.

    Ctrl-C cancels the turn, not the conversation; a second one, or one at the prompt, leaves.

    Exit codes: 0 ended, 1 failed or refused, 130 left with Ctrl-C.
    """
    if session_id and agent_id:
        raise click.UsageError("a session has its agent: leave out --agent or --session")
    # The runner's loop stands still while a line is read: the line is read here, where Ctrl-C and editing work.
    with asyncio.Runner() as runner:
        conversation = _Conversation()
        try:
            runner.run(conversation.begin(agent_id or "assistant", session_id))
            while True:
                said = _line()
                if said is None or not runner.run(conversation.take(said.strip())):
                    return
        finally:
            runner.run(conversation.close())


class _Conversation:
    """A session, and the client that talks in it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._agent_id = ""
        self._session_id = ""
        self._client: Client | None = None

    async def begin(self, agent_id: str, session_id: str | None) -> None:
        from turnwire.cli.connecting import connected

        self._client = client = await self._stack.enter_async_context(connected())
        session = await (client.get_session(session_id) if session_id else client.create_session(agent_id))
        self._agent_id = session.agent_id
        self._session_id = session.session_id
        click.secho(f"{self._agent_id}, {self._session_id}. {_HELP}", err=True, dim=True)

    async def close(self) -> None:
        await self._stack.aclose()

    async def take(self, said: str) -> bool:
        """Does what a line says; False when it ends the conversation."""
        from turnwire.cli.failures import told
        from turnwire.cli.running import EXIT_INTERRUPTED, Left, run
        from turnwire.errors import TurnwireError

        assert self._client is not None
        client = self._client
        try:
            match said:
                case "":
                    pass
                case "/quit" | "/exit":
                    return False
                case "/help":
                    click.echo(_HELP, err=True)
                case "/session":
                    click.echo(self._session_id, err=True)
                case "/new":
                    await self._move(client.create_session(self._agent_id))
                case "/fork":
                    await self._move(client.fork_session(self._session_id))
                case _ if said.startswith("/") and " " not in said:
                    click.echo(f"there is no {said}: {_HELP}", err=True)
                case _:
                    await run(client, client.run_turn(self._session_id, said), as_json=False, quiet=False)
        except TurnwireError as error:
            click.echo(f"Error: {told(error)[0]}", err=True)
        except Left:
            sys.exit(EXIT_INTERRUPTED)
        return True

    async def _move(self, making: Coroutine[Any, Any, Any]) -> None:
        self._session_id = (await making).session_id
        click.echo(self._session_id, err=True)


def _line() -> str | None:
    """Returns the next line, None at the end of input. A prompt is shown to people, never in what is piped."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport] - `input` edits lines once it is loaded

        try:
            return input(_PROMPT)
        except EOFError:
            click.echo(err=True)
            return None
    if sys.stdin.isatty():
        click.echo(_PROMPT, nl=False, err=True)
    return sys.stdin.readline() or None
