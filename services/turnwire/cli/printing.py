"""Messages of the contract, as JSON or as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from google.protobuf import json_format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp


def as_text(message: Message) -> str:
    """Returns a message as JSON, with the names of the contract."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, ensure_ascii=False)


def print_message(message: Message) -> None:
    """Prints a message as JSON."""
    click.echo(as_text(message))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under their columns."""
    texts = [[str(value) for value in row] for row in rows]
    widths = [max(len(column), *(len(row[index]) for row in texts), 0) for index, column in enumerate(columns)]
    for row in [list(columns), *texts]:
        click.echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def when(timestamp: Timestamp) -> str:
    """Returns a time as people write it, UTC."""
    if not timestamp.seconds:
        return "-"
    return timestamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


def read_message(file: Any, message: Message) -> Message:
    """Returns a message read from a YAML or JSON file.

    Raises:
        click.UsageError: the file is no such message.
    """
    import yaml

    try:
        json_format.ParseDict(yaml.safe_load(file.read()) or {}, message)
    except (yaml.YAMLError, json_format.ParseError, TypeError, AttributeError) as error:
        raise click.UsageError(f"{file.name} is no {message.DESCRIPTOR.name}: {error}") from None
    return message
