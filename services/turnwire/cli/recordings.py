"""`turnwire turns export`, `import` and `replay`: turns as files of JSON lines, a record a line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import print_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnwire.agent.v1.agent_service_pb2 import TurnRecord


@click.command("export")
@click.argument("turn_ids", metavar="TURN…", nargs=-1, required=True)
@click.option("-o", "--output", type=click.File("w", encoding="utf-8", atomic=True), default="-", help="The file.")
@asynchronous
async def export(turn_ids: tuple[str, ...], output: Any) -> None:
    """Write turns that have ended as JSON lines: configuration, history, events, and a digest of them."""
    from google.protobuf import json_format

    from turnwire.cli.connecting import connected

    async with connected() as client:
        for turn_id in turn_ids:
            for record in await client.export_turn(turn_id):
                line = json_format.MessageToJson(
                    record, preserving_proto_field_name=True, indent=None, ensure_ascii=False
                )
                click.echo(line, file=output)


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--session", "session_id", required=True, help="The session that takes the turns, as its next ones.")
@click.option("--turn-id", default="", help="The id that the turn gets; without it the one it had.")
@json_option
@asynchronous
async def import_(file: Any, session_id: str, turn_id: str, as_json: bool) -> None:
    """Take exported turns into a session.

    Nothing is written of a turn whose records are cut, altered, or of another format.
    """
    from turnwire.cli.connecting import connected

    taken = list(_turns(file.read(), file.name))
    if turn_id and len(taken) != 1:
        raise click.UsageError(f"`--turn-id` is for one turn, and {file.name} has {len(taken)}")
    async with connected() as client:
        for records in taken:
            turn = await client.import_turn(session_id, records, turn_id=turn_id)
            if as_json:
                print_message(turn)
            else:
                click.echo(turn.turn_id)


@click.command("replay")
@click.argument("sources", metavar="FILE|TURN…", nargs=-1, required=True)
@asynchronous
async def replay(sources: tuple[str, ...]) -> None:
    """Make the decisions of recorded turns again, and show the first that differs.

    The answers of models, tools, shields, banks and callers are taken from the recording; none of them is called.

    Exit codes: 0 all decisions are the same, 1 one differs, or a recording cannot be read.
    """
    from turnwire.agent import records
    from turnwire.agent.replay import replay as replayed
    from turnwire.errors import InvalidArgument

    differs = False
    for source in sources:
        for taken in await _recorded(source):
            try:
                recording = records.read(taken)
            except InvalidArgument as error:
                raise click.ClickException(f"{source}: {error.message}") from None
            result = replayed(recording)
            if result.difference is None:
                click.echo(f"{recording.header.turn_id}: all {result.decisions} decisions are the same")
                continue
            differs = True
            found = result.difference
            click.echo(f"{recording.header.turn_id}: differs at event {found.sequence}, field {found.field}")
            click.echo(f"  expected {found.expected}")
            click.echo(f"  got      {found.got}")
            click.echo(f"  {result.decisions} decisions before it are the same")
    if differs:
        sys.exit(1)


async def _recorded(source: str) -> list[Sequence[TurnRecord]]:
    """Returns the turns of a file, or the turn of an id."""
    from turnwire.cli.connecting import connected

    text = await asyncio.to_thread(_read, source)
    if text is not None:
        return list(_turns(text, source))
    async with connected() as client:
        return [await client.export_turn(source)]


def _read(source: str) -> str | None:
    """Returns what is in a file; None when it is none, and may be the id of a turn."""
    file = Path(source)
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if "/" in source or file.suffix:
        raise click.UsageError(f"there is no file {source}")
    return None


def _turns(text: str, name: str) -> Iterator[Sequence[TurnRecord]]:
    """Yields the records of each turn of a file: a header begins one."""
    from google.protobuf import json_format

    from turnwire.agent.v1.agent_service_pb2 import TurnRecord

    turn: list[TurnRecord] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json_format.Parse(line, TurnRecord())
        except json_format.ParseError as error:
            raise click.ClickException(f"{name}, line {number} is no record of this version: {error}") from None
        if turn and record.WhichOneof("record") == "header":
            yield turn
            turn = []
        turn.append(record)
    if not turn:
        raise click.ClickException(f"{name} has no records")
    yield turn
