"""One turn from the command line: shown as it happens, cancelled by Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import click
from google.protobuf import json_format

from turnwire.agent.v1 import turn_pb2
from turnwire.cli.showing import TurnPrinter
from turnwire.errors import TurnwireError

if TYPE_CHECKING:
    from turnwire.client import Client, TurnStream

EXIT_FAILED = 1
EXIT_AWAITS_INPUT = 3
EXIT_INTERRUPTED = 130
_LOOK_SECONDS = 0.2


class Left(Exception):
    """The user did not wait for the end of a turn that is being cancelled."""


async def run(client: Client, stream: TurnStream, *, as_json: bool, quiet: bool) -> int:
    """Shows a turn to its end, or to a pause, and returns the exit code.

    The first Ctrl-C cancels the turn and waits for its end.

    Raises:
        Left: there was a second one.
    """
    printer = None if as_json else TurnPrinter(quiet=quiet)
    shown = asyncio.create_task(_show(stream, printer))
    looking = asyncio.create_task(_tell_reconnects(stream, quiet))
    cancelling: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if cancelling:
            shown.cancel()
        else:
            click.echo("\ncancelling … (Ctrl-C again leaves at once)", err=True)
            cancelling.append(asyncio.create_task(_cancel(client, stream)))

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        await shown
        await asyncio.gather(*cancelling)
    except asyncio.CancelledError:
        if not cancelling:
            raise
        click.echo(f"left; `turnwire turns get {stream.turn_id}` shows how it ends", err=True)
        raise Left from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        ending = [looking, shown, *cancelling]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
    if printer is not None:
        printer.end(stream.turn)
    return _exit_code(stream.turn.status)


async def _show(stream: TurnStream, printer: TurnPrinter | None) -> None:
    async with stream:
        async for event in stream:
            if printer is None:
                click.echo(json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None))
            else:
                printer.show(event)


async def _tell_reconnects(stream: TurnStream, quiet: bool) -> None:
    """Says that a stream is resumed: without a word a mesh that is away looks like a model that thinks."""
    told = False
    while not quiet:
        await asyncio.sleep(_LOOK_SECONDS)
        if stream.reconnects and not told:
            told = True
            click.secho("\n  the agent service is away; waiting for it to resume the turn", err=True, dim=True)


async def _cancel(client: Client, stream: TurnStream) -> None:
    try:
        answer = await client.cancel_turn(stream.turn_id, reason="Ctrl-C", allow_missing=True)
    except TurnwireError as error:
        click.echo(f"  not cancelled: {error.message}", err=True)
        return
    for call in answer.calls:
        outcome = turn_pb2.CancelledCall.Outcome.Name(call.outcome).removeprefix("OUTCOME_").lower()
        click.echo(f"  {call.call_id or 'the call of the model'}: {outcome}", err=True)


def _exit_code(status: turn_pb2.TurnStatus.ValueType) -> int:
    match status:
        case turn_pb2.TURN_STATUS_FAILED:
            return EXIT_FAILED
        case turn_pb2.TURN_STATUS_CANCELLED:
            return EXIT_INTERRUPTED
        case turn_pb2.TURN_STATUS_AWAITING_INPUT:
            return EXIT_AWAITS_INPUT
        case _:
            return 0
