"""`turnwire status`: what is up."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import enum_word, print_table
from turnwire.cli.services import SERVICES, edge

if TYPE_CHECKING:
    from turnwire.client import Client


@click.command()
@json_option
@asynchronous
async def status(as_json: bool) -> None:
    """Show each service and the gateway: where it is, whether it answers, since when, and its providers.

    A service is `off` when this machine cannot run it: the mesh was started without it.

    Exit codes: 0 all that were started are up, 1 at least one is not.
    """
    from turnwire.cli.connecting import connected
    from turnwire.cli.run_file import is_running
    from turnwire.client import find_mesh

    mesh = find_mesh()
    runs = mesh is not None and is_running(mesh)
    off: dict[str, str] = mesh.get("off", {}) if mesh is not None and runs else {}
    async with connected() as client:
        found = await asyncio.gather(
            *(_asked(client, service) for service in SERVICES if service not in off),
            *(_off(service, why) for service, why in off.items()),
            *(_gateway(name) for name in edge()),
        )
    if as_json:
        told = {"pid": mesh["pid"], "data_dir": mesh["data_dir"], "running": runs} if mesh is not None else None
        click.echo(json.dumps({"mesh": told, "services": found}, indent=2, ensure_ascii=False))
    else:
        rows = [(each["service"], each["address"], each["state"], each["version"], each["detail"]) for each in found]
        print_table(("SERVICE", "ADDRESS", "STATE", "VERSION", ""), rows)
        if mesh is not None:
            told = f"process {mesh['pid']}" if runs else "its process is gone: `turnwire up` starts it again"
            click.echo(f"data in {mesh['data_dir']}; {told}", err=True)
        elif not any(each["state"] == "up" for each in found):
            click.echo("no mesh was started in this folder or above it: `turnwire up`", err=True)
    sys.exit(0 if all(each["state"] in {"up", "off"} for each in found) else 1)


async def _asked(client: Client, service: str) -> dict[str, str]:
    from turnwire.client.finding import address_of
    from turnwire.errors import PermissionDenied, TurnwireError, Unauthenticated

    result = {"service": service, "address": address_of(service), "state": "down", "version": "-", "detail": ""}
    try:
        info = await client.server_info(service)
        result |= {"state": "up", "version": info.version}
        details = [f"since {_duration(int(time.time() - info.start_time.seconds))}"]
        if service == "inference":
            details += await _providers(client)
        result["detail"] = "; ".join(details)
    except (Unauthenticated, PermissionDenied):
        result |= {"state": "up", "detail": "it refuses the key: set TURNWIRE_API_KEY"}
    except TurnwireError as error:
        result["detail"] = error.message
    return result


async def _off(service: str, why: str) -> dict[str, str]:
    from turnwire.client.finding import address_of

    return {"service": service, "address": address_of(service), "state": "off", "version": "-", "detail": why}


async def _gateway(name: str) -> dict[str, str]:
    """Asks the gateway for its health, at the port beside its own that speaks plain HTTP."""
    from turnwire.cli.supervision import ready
    from turnwire.client.finding import address_of
    from turnwire.runtime.settings.models import HEALTH_OFFSET

    address = address_of(name)
    host, _, port = address.rpartition(":")
    result = {"service": name, "address": address, "state": "down", "version": "-", "detail": ""}
    if await asyncio.to_thread(ready, f"{host}:{int(port) + HEALTH_OFFSET}"):
        return result | {"state": "up"}
    return result | {"detail": f"The {name} cannot be reached."}


async def _providers(client: Client) -> list[str]:
    from turnwire.common.v1 import inspect_service_pb2

    return [
        f"{each.provider_id} {enum_word(inspect_service_pb2.Provider.State.Name(each.state), 'STATE_')}"
        for each in await client.list_providers("inference")
    ]


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
