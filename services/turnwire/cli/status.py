"""`turnwire status`: what is up."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import print_table
from turnwire.cli.services import SERVICES


@click.command()
@json_option
@asynchronous
async def status(as_json: bool) -> None:
    """Show each service: where it is, whether it answers, since when, and its providers."""
    import asyncio

    from turnwire.client import Client

    async with Client.connect() as client:
        found = await asyncio.gather(*(_asked(client, service) for service in SERVICES))
    if as_json:
        click.echo(json.dumps({"services": found}, indent=2))
    else:
        rows = [(each["service"], each["address"], each["state"], each["version"], each["detail"]) for each in found]
        print_table(("SERVICE", "ADDRESS", "STATE", "VERSION", ""), rows)
    sys.exit(0 if all(each["state"] == "up" for each in found) else 1)


async def _asked(client: Any, service: str) -> dict[str, str]:
    from turnwire.client.finding import address_of
    from turnwire.errors import TurnwireError

    result = {"service": service, "address": address_of(service), "state": "down", "version": "-", "detail": ""}
    try:
        info = await client.server_info(service)
    except TurnwireError as error:
        result["detail"] = error.message
        return result
    seconds = int(time.time() - info.start_time.seconds)
    result |= {"state": "up", "version": info.version, "detail": f"since {_duration(seconds)}"}
    if service == "inference":
        from turnwire.common.v1 import inspect_service_pb2

        for provider in await client.list_providers(service):
            state = inspect_service_pb2.Provider.State.Name(provider.state).removeprefix("STATE_").lower()
            result["detail"] += f"; {provider.provider_id} {state}"
    return result


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
