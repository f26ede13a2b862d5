"""`turnwire ask`: one turn."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from turnwire.cli.options import asynchronous, json_option


def _content(file: Path | None) -> str:
    return file.read_text(encoding="utf-8") if file is not None else ""


@click.command()
@click.argument("text", required=False)
@click.option("--agent", "agent_id", default="assistant", show_default=True, help="The agent.")
@click.option("--session", "session_id", help="Go on in this session; else a new one begins.")
@click.option("--model", help="Another model, for this turn.")
@click.option("--instructions", help="Other instructions, for this turn.")
@click.option("--max-tokens", type=click.IntRange(1), help="At most so many tokens.")
@click.option("--greedy", is_flag=True, help="Always the most probable token.")
@click.option("--file", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Text to ask about.")
@click.option("--turn-id", help="The id of the turn: the same again attaches to it.")
@click.option("--quiet", "-q", is_flag=True, help="The answer only.")
@json_option
@asynchronous
async def ask(
    text: str | None,
    agent_id: str,
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

    The answer goes to standard output, all else to standard error. Exit codes: 0 answered, 1 failed, 3 waits for input,
    130 cancelled by Ctrl-C.
    """
    from turnwire.agent.v1 import agent_pb2
    from turnwire.cli.running import run
    from turnwire.client import Client

    if text is None and not sys.stdin.isatty():
        text = sys.stdin.read()
    said = "\n\n".join(part for part in (text, _content(file)) if part)
    if not said.strip():
        raise click.UsageError('say something: turnwire ask "What is gRPC?"')
    overrides = agent_pb2.AgentConfig()
    if model:
        overrides.model = model
    if instructions:
        overrides.instructions = instructions
    if max_tokens:
        overrides.sampling_parameters.max_tokens = max_tokens
    if greedy:
        overrides.sampling_parameters.greedy.SetInParent()
    async with Client.connect() as client:
        session = session_id or (await client.create_session(agent_id)).session_id
        stream = client.run_turn(
            session, said, turn_id=turn_id or "", overrides=overrides if overrides.ListFields() else None
        )
        code = await run(client, stream, as_json=as_json, quiet=quiet)
    sys.exit(code)
