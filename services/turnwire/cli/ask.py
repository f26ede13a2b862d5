"""`turnwire ask`: one turn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnwire.cli.options import asynchronous, json_option

if TYPE_CHECKING:
    from turnwire.client import Client


@click.command()
@click.argument("text", required=False)
@click.option("--agent", "agent_id", help="The agent. [assistant]")
@click.option("--session", "session_id", help="Go on in this session; else a new one begins.")
@click.option("--model", help="Another model, for this turn.")
@click.option("--instructions", help="Other instructions, for this turn.")
@click.option("--max-tokens", type=click.IntRange(1), help="At most so many tokens.")
@click.option("--greedy", is_flag=True, help="Always the most probable token.")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="Text to ask about; - is standard input.",
)
@click.option("--turn-id", help="The id of the turn: the same again, with the same words, attaches to it.")
@click.option("--quiet", "-q", is_flag=True, help="The answer only.")
@json_option
@asynchronous
async def ask(
    text: str | None,
    agent_id: str | None,
    session_id: str | None,
    model: str | None,
    instructions: str | None,
    max_tokens: int | None,
    greedy: bool,
    file: Path | None,
    turn_id: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Ask an agent once and show the turn as it happens.

    The answer goes to standard output, all else to standard error; what is piped gets the answer when it is final.
    Without TEXT the question is read from standard input. Ctrl-C cancels the turn, a second one leaves at once. With
    --json each event is a line.

    Exit codes: 0 answered, 1 failed or refused, 2 wrong usage, 3 waits for input, 130 cancelled by Ctrl-C.
    """
    from turnwire.agent.v1 import agent_pb2
    from turnwire.cli.connecting import connected
    from turnwire.cli.running import EXIT_INTERRUPTED, Left, run

    if session_id and agent_id:
        raise click.UsageError("a session has its agent: leave out --agent or --session")
    said = _said(text, file)
    overrides = agent_pb2.AgentConfig()
    if model:
        overrides.model = model
    if instructions:
        overrides.instructions = instructions
    if max_tokens:
        overrides.sampling_parameters.max_tokens = max_tokens
    if greedy:
        overrides.sampling_parameters.greedy.SetInParent()
    async with connected() as client:
        session = session_id or await _session(client, agent_id or "assistant", turn_id)
        stream = client.run_turn(
            session, said, turn_id=turn_id or "", overrides=overrides if overrides.ListFields() else None
        )
        try:
            code = await run(client, stream, as_json=as_json, quiet=quiet)
        except Left:
            code = EXIT_INTERRUPTED
    sys.exit(code)


def _said(text: str | None, file: Path | None) -> str:
    """Returns what is asked: the text, then the file.

    Raises:
        click.UsageError: there is nothing to ask, or it is no text.
    """
    parts = [text] if text is not None else []
    if file is not None and str(file) != "-":
        parts.append(_decoded(str(file), file.read_bytes()))
    elif file is not None or (text is None and not sys.stdin.isatty()):
        parts.append(_decoded("standard input", sys.stdin.buffer.read()))
    said = "\n\n".join(part for part in parts if part)
    if not said.strip():
        raise click.UsageError('say something: turnwire ask "What is gRPC?"')
    return said


def _decoded(source: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source} is no text in UTF-8 (byte {error.start})") from None


async def _session(client: Client, agent_id: str, turn_id: str | None) -> str:
    """Returns the session of a turn that is there already, else a new one."""
    from turnwire.errors import NotFound

    if turn_id:
        try:
            return (await client.get_turn(turn_id)).session_id
        except NotFound:
            pass  # it is new
    return (await client.create_session(agent_id)).session_id
