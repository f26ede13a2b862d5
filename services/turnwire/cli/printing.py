"""Messages of the contract, as JSON, as YAML or as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click
from google.protobuf import json_format

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

_PAGE = 200
_R = TypeVar("_R")


def print_message(message: Message) -> None:
    """Prints a message as JSON, with the names of the contract."""
    click.echo(json_format.MessageToJson(message, preserving_proto_field_name=True, ensure_ascii=False))


def print_document(message: Message, *, as_json: bool) -> None:
    """Prints a message as a whole: as JSON for programs, as YAML for people."""
    if as_json:
        print_message(message)
        return
    import yaml

    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    click.echo(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120), nl=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under their columns."""
    texts = [[str(value) for value in row] for row in rows]
    widths = [max(len(column), *(len(row[index]) for row in texts), 0) for index, column in enumerate(columns)]
    for row in [list(columns), *texts]:
        click.echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


async def all_pages(ask: Callable[..., Awaitable[_R]], field: str, **fields: Any) -> _R:
    """Returns the response to a List method with the items of all its pages in `field`."""
    response: Any = await ask(page_size=_PAGE, **fields)
    items: RepeatedCompositeFieldContainer[Any] = getattr(response, field)
    while response.next_page_token:
        page: Any = await ask(page_size=_PAGE, page_token=response.next_page_token, **fields)
        items.extend(getattr(page, field))
        response.next_page_token = page.next_page_token
    return response


def when(timestamp: Timestamp) -> str:
    """Returns a time as people write it, UTC."""
    if not timestamp.seconds:
        return "-"
    return timestamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


def enum_word(name: str, prefix: str) -> str:
    """Returns the name of an enum's value as people say it: `awaiting input`."""
    return name.removeprefix(prefix).lower().replace("_", " ")


def shortened(text: str, most: int = 50) -> str:
    """Returns a text on one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def read_message(file: Any, message: Message) -> Message:
    """Returns a message read from a YAML or JSON file.

    Raises:
        click.UsageError: the file is no such message.
    """
    import yaml

    try:
        json_format.ParseDict(yaml.safe_load(file.read()) or {}, message)
    except (yaml.YAMLError, json_format.ParseError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise click.UsageError(f"{file.name} is no {message.DESCRIPTOR.name}: {error}") from None
    return message
