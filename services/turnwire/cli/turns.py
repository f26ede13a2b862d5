"""`turnwire turns`."""

from __future__ import annotations

import sys

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import print_message, print_table, when


@click.group()
def turns() -> None:
    """List, show, watch, answer, cancel and delete turns."""


@turns.command("list")
@click.option("--session", "session_id", default="", help="Only of this session.")
@json_option
@asynchronous
async def list_turns(session_id: str, as_json: bool) -> None:
    """List the turns, in order of acceptance."""
    from turnwire.agent.v1 import turn_pb2
    from turnwire.client import Client

    async with Client.connect() as client:
        response = await client.list_turns(session_id=session_id, page_size=200)
    if as_json:
        print_message(response)
        return
    rows = [
        (
            turn.turn_id,
            turn.ordinal,
            turn_pb2.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower(),
            when(turn.create_time),
            _short("".join(part.text for message in turn.input for part in message.parts)),
        )
        for turn in response.turns
    ]
    print_table(("TURN", "ORDINAL", "STATUS", "ACCEPTED", "SAID"), rows)


@turns.command("get")
@click.argument("turn_id")
@json_option
@asynchronous
async def get_turn(turn_id: str, as_json: bool) -> None:
    """Show a turn with its steps."""
    from turnwire.client import Client

    async with Client.connect() as client:
        print_message(await client.get_turn(turn_id))


@turns.command("watch")
@click.argument("turn_id")
@click.option("--after", type=int, default=0, help="Only events after this number.")
@click.option("--follow", is_flag=True, help="Stay while it waits for input.")
@json_option
@asynchronous
async def watch_turn(turn_id: str, after: int, follow: bool, as_json: bool) -> None:
    """Show the events of a turn, live or past."""
    from google.protobuf import json_format

    from turnwire.cli.showing import TurnPrinter
    from turnwire.client import Client

    async with Client.connect() as client:
        stream = client.watch_turn(turn_id, after_sequence=after, follow_pauses=follow)
        printer = TurnPrinter()
        async with stream:
            async for event in stream:
                if as_json:
                    click.echo(json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None))
                else:
                    printer.show(event, stream)


@turns.command("submit")
@click.argument("turn_id")
@click.argument("call_id")
@click.argument("content")
@click.option("--watch", is_flag=True, help="Show how the turn goes on.")
@json_option
@asynchronous
async def submit(turn_id: str, call_id: str, content: str, watch: bool, as_json: bool) -> None:
    """Give a waiting turn the result of a call."""
    from turnwire.cli.running import run
    from turnwire.client import Client
    from turnwire.common.v1 import message_pb2

    async with Client.connect() as client:
        result = message_pb2.ToolResult(call_id=call_id, content=content)
        response = await client.submit_turn_input(turn_id, [result])
        if watch:
            sys.exit(await run(client, client.watch_turn(turn_id), as_json=as_json, quiet=False))
    if as_json:
        print_message(response)
    else:
        click.echo(f"taken; {len(response.remaining)} calls are still open")


@turns.command("cancel")
@click.argument("turn_id")
@click.option("--reason", default="", help="Why.")
@json_option
@asynchronous
async def cancel(turn_id: str, reason: str, as_json: bool) -> None:
    """Cancel a turn."""
    from turnwire.agent.v1 import turn_pb2
    from turnwire.client import Client

    async with Client.connect() as client:
        response = await client.cancel_turn(turn_id, reason=reason)
    if as_json:
        print_message(response)
    else:
        click.echo(turn_pb2.TurnStatus.Name(response.status).removeprefix("TURN_STATUS_").lower())


@turns.command("delete")
@click.argument("turn_id")
@asynchronous
async def delete(turn_id: str) -> None:
    """Delete a turn that has ended."""
    from turnwire.client import Client

    async with Client.connect() as client:
        await client.delete_turn(turn_id)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 50 else line[:49] + "…"
