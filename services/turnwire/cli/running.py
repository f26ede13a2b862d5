"""One turn from the command line: shown as it happens, cancelled by Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import click
from google.protobuf import json_format

from turnwire.agent.v1 import turn_pb2
from turnwire.cli.showing import TurnPrinter

if TYPE_CHECKING:
    from turnwire.client import Client, TurnStream

EXIT_FAILED = 1
EXIT_CANCELLED = 130
EXIT_AWAITS_INPUT = 3


async def run(client: Client, stream: TurnStream, *, as_json: bool, quiet: bool) -> int:
    """Shows a turn to its end and returns the exit code; Ctrl-C cancels it."""
    printer = TurnPrinter(quiet=quiet)
    cancelling: list[asyncio.Task[Any]] = []
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if not cancelling:
            click.echo("\ncancelling …", err=True)
            cancelling.append(asyncio.create_task(_cancel(client, stream)))

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        async with stream:
            async for event in stream:
                if as_json:
                    click.echo(json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None))
                else:
                    printer.show(event, stream)
        await asyncio.gather(*cancelling)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    match stream.turn.status:
        case turn_pb2.TURN_STATUS_FAILED:
            return EXIT_FAILED
        case turn_pb2.TURN_STATUS_CANCELLED:
            return EXIT_CANCELLED
        case turn_pb2.TURN_STATUS_AWAITING_INPUT:
            return EXIT_AWAITS_INPUT
        case _:
            return 0


async def _cancel(client: Client, stream: TurnStream) -> None:
    answer = await client.cancel_turn(stream.turn_id, reason="Ctrl-C", allow_missing=True)
    for call in answer.calls:
        outcome = turn_pb2.CancelledCall.Outcome.Name(call.outcome).removeprefix("OUTCOME_").lower()
        click.echo(f"  {call.call_id or 'the call of the model'}: {outcome}", err=True)
