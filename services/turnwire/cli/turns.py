"""`turnwire turns`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import all_pages, enum_word, print_document, print_message, print_table, shortened, when
from turnwire.cli.recordings import export, import_, replay

if TYPE_CHECKING:
    from turnwire.agent.v1 import step_pb2
    from turnwire.agent.v1.agent_service_pb2 import SubmitTurnInputResponse
    from turnwire.client import Client

_STATUSES = ("queued", "running", "awaiting_input", "completed", "failed", "cancelled")


@click.group()
def turns() -> None:
    """List, show, watch, answer, cancel, export, replay and delete turns."""


turns.add_command(export)
turns.add_command(import_)
turns.add_command(replay)


@turns.command("list")
@click.option("--session", "session_id", default="", help="Only of this session.")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(_STATUSES), help="Only of this status; can be repeated."
)
@json_option
@asynchronous
async def list_turns(session_id: str, statuses: tuple[str, ...], as_json: bool) -> None:
    """List the turns, in order of acceptance: `--status awaiting_input` those that wait for an answer."""
    from turnwire.agent.v1 import turn_pb2
    from turnwire.cli.connecting import connected

    async with connected() as client:
        wanted = [turn_pb2.TurnStatus.Value(f"TURN_STATUS_{status.upper()}") for status in statuses]
        response = await all_pages(client.list_turns, "turns", session_id=session_id, statuses=wanted)
    if as_json:
        print_message(response)
        return
    rows = [
        (
            turn.turn_id,
            turn.ordinal,
            enum_word(turn_pb2.TurnStatus.Name(turn.status), "TURN_STATUS_"),
            when(turn.create_time),
            shortened("".join(part.text for message in turn.input for part in message.parts)),
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
    from turnwire.cli.connecting import connected

    async with connected() as client:
        print_document(await client.get_turn(turn_id), as_json=as_json)


@turns.command("steps")
@click.argument("turn_id")
@click.argument("step_id", required=False)
@json_option
@asynchronous
async def steps(turn_id: str, step_id: str | None, as_json: bool) -> None:
    """List the steps of a turn, or show one."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        if step_id is not None:
            print_document(await client.get_step(turn_id, step_id), as_json=as_json)
            return
        response = await all_pages(client.list_steps, "steps", turn_id=turn_id)
    if as_json:
        print_message(response)
        return
    print_table(("STEP", "TYPE", "STATUS", "SECONDS", "TOKENS", ""), [_row(step) for step in response.steps])


def _row(step: step_pb2.Step) -> tuple[object, ...]:
    from turnwire.agent.v1 import step_pb2 as messages

    seconds = "-"
    if step.HasField("end_time"):
        taken = step.end_time.ToNanoseconds() - step.start_time.ToNanoseconds()
        seconds = f"{taken / 1e9:.2f}"
    told = step.failure.message
    tokens = "-"
    if step.HasField("inference"):
        usage = step.inference.usage
        tokens = f"{usage.prompt_tokens} + {usage.completion_tokens}"
        told = told or f"{step.inference.provider_id}/{step.inference.model_id}: {step.inference.text}"
    return (
        step.step_id,
        enum_word(messages.StepType.Name(step.type), "STEP_TYPE_"),
        enum_word(messages.StepStatus.Name(step.status), "STEP_STATUS_"),
        seconds,
        tokens,
        shortened(told),
    )


@turns.command("watch")
@click.argument("turn_id")
@click.option("--after", type=click.IntRange(0), default=0, help="Only events after this number.")
@click.option("--follow", is_flag=True, help="Stay while it waits for input.")
@json_option
@asynchronous
async def watch_turn(turn_id: str, after: int, follow: bool, as_json: bool) -> None:
    """Show the events of a turn, live or past. Ctrl-C ends the watching, not the turn."""
    from google.protobuf import json_format

    from turnwire.cli.connecting import connected
    from turnwire.cli.showing import TurnPrinter

    async with connected() as client:
        stream = client.watch_turn(turn_id, after_sequence=after, follow_pauses=follow)
        printer = TurnPrinter()
        async with stream:
            async for event in stream:
                if as_json:
                    click.echo(json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None))
                else:
                    printer.show(event)
    if not as_json:
        printer.end(stream.turn)


@turns.command("submit")
@click.argument("turn_id")
@click.argument("call_id")
@click.argument("content")
@click.option("--watch", is_flag=True, help="Show how the turn goes on; Ctrl-C then cancels it.")
@json_option
@asynchronous
async def submit(turn_id: str, call_id: str, content: str, watch: bool, as_json: bool) -> None:
    """Give a waiting turn the result of a call.

    Exit codes: 0 taken (with --watch: answered), 1 failed or refused, 3 waits for more, 130 interrupted.
    """
    from turnwire.cli.connecting import connected
    from turnwire.common.v1 import message_pb2

    async with connected() as client:
        result = message_pb2.ToolResult(call_id=call_id, content=content)
        response = await client.submit_turn_input(turn_id, [result])
        await _taken(client, turn_id, response, watch=watch, as_json=as_json)


@turns.command("resolve")
@click.argument("turn_id")
@click.argument("call_id")
@click.argument("choice", type=click.Choice(["retry", "skip", "provide"]))
@click.argument("content", metavar="[RESULT]", required=False)
@click.option("--watch", is_flag=True, help="Show how the turn goes on; Ctrl-C then cancels it.")
@json_option
@asynchronous
async def resolve(turn_id: str, call_id: str, choice: str, content: str | None, watch: bool, as_json: bool) -> None:
    """Decide about a call whose outcome was lost.

    `retry` calls the tool again, under a new call id; `skip` tells the model that the outcome is not known; `provide`
    gives the RESULT.

    Exit codes: 0 taken (with --watch: answered), 1 failed or refused, 3 waits for more, 130 interrupted.
    """
    from turnwire.agent.v1 import turn_pb2
    from turnwire.cli.connecting import connected
    from turnwire.common.v1 import message_pb2

    if (content is not None) != (choice == "provide"):
        raise click.UsageError("a RESULT goes with `provide`, and only with it")
    result = message_pb2.ToolResult(call_id=call_id, content=content) if content is not None else None
    async with connected() as client:
        chosen = turn_pb2.OutcomeDecision.Choice.Value(f"CHOICE_{choice.upper()}")
        response = await client.resolve_turn_call(turn_id, call_id, chosen, result=result)
        await _taken(client, turn_id, response, watch=watch, as_json=as_json)


async def _taken(
    client: Client, turn_id: str, response: SubmitTurnInputResponse, *, watch: bool, as_json: bool
) -> None:
    """Says that an answer was taken, or shows how the turn goes on with it."""
    from turnwire.cli.running import EXIT_INTERRUPTED, Left, run

    if watch:
        try:
            sys.exit(await run(client, client.watch_turn(turn_id), as_json=as_json, quiet=False))
        except Left:
            sys.exit(EXIT_INTERRUPTED)
    if as_json:
        print_message(response)
    else:
        click.echo(f"taken; {len(response.remaining)} calls are still open")


@turns.command("update")
@click.argument("turn_id")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; they take the place of all others."
)
@json_option
@asynchronous
async def update(turn_id: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Give a turn other labels; without any it has none."""
    from turnwire.cli.connecting import connected

    metadata: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals:
            raise click.UsageError(f"{label!r} is no label: write KEY=VALUE")
        metadata[key] = value
    async with connected() as client:
        print_document(await client.update_turn(turn_id, metadata), as_json=as_json)


@turns.command("cancel")
@click.argument("turn_id")
@click.option("--reason", default="", help="Why.")
@click.option("--allow-missing", is_flag=True, help="Keep it from starting if it has not come yet.")
@json_option
@asynchronous
async def cancel(turn_id: str, reason: str, allow_missing: bool, as_json: bool) -> None:
    """Cancel a turn, and say what became of its open calls.

    `stopped`: it has ended. `fenced`: it may run on, and its result is no longer taken. `unknown`: whether it took
    effect is not known.
    """
    from turnwire.agent.v1 import turn_pb2
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await client.cancel_turn(turn_id, reason=reason, allow_missing=allow_missing)
    if as_json:
        print_message(response)
    else:
        click.echo(enum_word(turn_pb2.TurnStatus.Name(response.status), "TURN_STATUS_"))
        for call in response.calls:
            outcome = enum_word(turn_pb2.CancelledCall.Outcome.Name(call.outcome), "OUTCOME_")
            click.echo(f"  {call.call_id or call.step_id} {outcome}", err=True)


@turns.command("delete")
@click.argument("turn_id")
@json_option
@asynchronous
async def delete(turn_id: str, as_json: bool) -> None:
    """Delete a turn that has ended."""
    from turnwire.agent.v1 import agent_service_pb2
    from turnwire.cli.connecting import connected

    async with connected() as client:
        await client.delete_turn(turn_id)
    if as_json:
        print_message(agent_service_pb2.DeleteTurnResponse())
