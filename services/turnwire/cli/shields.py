"""`turnwire shields`."""

from __future__ import annotations

import sys
from typing import Any

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import all_pages, enum_word, print_document, print_message, print_table, when

_POINTS = ("input", "output", "tool-arguments", "tool-result", "retrieval", "memory-write")


@click.group()
def shields() -> None:
    """List, show, register, unregister and try shields."""


@shields.command("list")
@json_option
@asynchronous
async def list_shields(as_json: bool) -> None:
    """List the shields."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await all_pages(client.shields.list, "shields")
    if as_json:
        print_message(response)
        return
    rows = [
        (each.shield_id, each.provider_id, "with its provider" if each.built_in else when(each.create_time))
        for each in response.shields
    ]
    print_table(("SHIELD", "PROVIDER", "MADE"), rows)


@shields.command("get")
@click.argument("shield_id")
@json_option
@asynchronous
async def get_shield(shield_id: str, as_json: bool) -> None:
    """Show a shield."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        print_document(await client.shields.get(shield_id), as_json=as_json)


@shields.command("register")
@click.argument("shield_id")
@click.option("--provider", "provider_id", default="", help="Who runs it. [the only one there is]")
@click.option("--provider-shield", "provider_shield_id", default="", help="The provider's name for it.")
@click.option("--config", "config_file", type=click.File(), help="Its settings, a JSON file; - reads from stdin.")
@json_option
@asynchronous
async def register(shield_id: str, provider_id: str, provider_shield_id: str, config_file: Any, as_json: bool) -> None:
    """Give a shield of a provider an id and settings of its own."""
    from turnwire.cli.connecting import connected

    config_json = config_file.read() if config_file is not None else ""
    async with connected() as client:
        shield = await client.shields.register(
            shield_id, provider_id=provider_id, provider_shield_id=provider_shield_id, config_json=config_json
        )
    if as_json:
        print_message(shield)
    else:
        click.echo(f"{shield.provider_id}/{shield.shield_id}")


@shields.command("unregister")
@click.argument("shield_id")
@json_option
@asynchronous
async def unregister(shield_id: str, as_json: bool) -> None:
    """Take a registration back."""
    from turnwire.cli.connecting import connected
    from turnwire.safety.v1 import shield_service_pb2

    async with connected() as client:
        await client.shields.unregister(shield_id)
    if as_json:
        print_message(shield_service_pb2.UnregisterShieldResponse())


@shields.command("run")
@click.argument("text")
@click.option("--shield", "shield_ids", multiple=True, required=True, help="Repeatable.")
@click.option("--point", type=click.Choice(_POINTS), default="input", show_default=True, help="Where in a turn.")
@json_option
@asynchronous
async def run(text: str, shield_ids: tuple[str, ...], point: str, as_json: bool) -> None:
    """Show what shields say of TEXT; - reads it from stdin.

    Exit codes: 0 it passes, 1 a shield objects or could not judge.
    """
    from turnwire.cli.connecting import connected
    from turnwire.common.v1 import shield_pb2

    said = sys.stdin.read() if text == "-" else text
    where = shield_pb2.ShieldPoint.Value(f"SHIELD_POINT_{point.upper().replace('-', '_')}")
    async with connected() as client:
        response = await client.shields.run(shield_ids, said, point=where)
    stopped = any(
        verdict.HasField("failure") or verdict.level == shield_pb2.VIOLATION_LEVEL_ERROR
        for verdict in response.verdicts
    )
    if as_json:
        print_message(response)
        sys.exit(1 if stopped else 0)
    rows = [
        (each.shield_id, _level(each), ", ".join(each.categories), each.failure.message or each.user_message)
        for each in response.verdicts
    ]
    print_table(("SHIELD", "LEVEL", "FOUND", ""), rows)
    for message in response.redacted:
        click.echo("".join(part.text for part in message.parts))
    sys.exit(1 if stopped else 0)


def _level(verdict: Any) -> str:
    from turnwire.common.v1 import shield_pb2

    if verdict.HasField("failure"):
        return "no verdict"
    if verdict.level == shield_pb2.VIOLATION_LEVEL_UNSPECIFIED:
        return "-"
    return enum_word(shield_pb2.ViolationLevel.Name(verdict.level), "VIOLATION_LEVEL_")
