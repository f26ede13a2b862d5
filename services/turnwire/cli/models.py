"""`turnwire models` and `turnwire providers`."""

from __future__ import annotations

import sys

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import print_message, print_table


@click.group()
def models() -> None:
    """List, register and fetch models."""


@models.command("list")
@json_option
@asynchronous
async def list_models(as_json: bool) -> None:
    """List the models that can be used."""
    from turnwire.client import Client
    from turnwire.inference.v1 import model_pb2

    async with Client.connect() as client:
        response = await client.list_models(page_size=200)
    if as_json:
        print_message(response)
        return
    rows = [
        (
            model.model_id,
            model.provider_id,
            model_pb2.ModelType.Name(model.type).removeprefix("MODEL_TYPE_").lower(),
            model.context_tokens or "-",
            "built in" if model.built_in else f"registered for {model.provider_model_id}",
        )
        for model in response.models
    ]
    print_table(("MODEL", "PROVIDER", "TYPE", "CONTEXT", ""), rows)


@models.command("get")
@click.argument("model_id")
@json_option
@asynchronous
async def get_model(model_id: str, as_json: bool) -> None:
    """Show a model."""
    from turnwire.client import Client

    async with Client.connect() as client:
        print_message(await client.get_model(model_id))


@models.command("register")
@click.argument("model_id")
@click.option("--provider", "provider_id", default="", help="The provider that serves it.")
@click.option("--provider-model", "provider_model_id", default="", help="The provider's name for it.")
@json_option
@asynchronous
async def register(model_id: str, provider_id: str, provider_model_id: str, as_json: bool) -> None:
    """Give a model of a provider an id of its own."""
    from turnwire.client import Client

    async with Client.connect() as client:
        model = await client.register_model(model_id, provider_id=provider_id, provider_model_id=provider_model_id)
    if as_json:
        print_message(model)
    else:
        click.echo(f"{model.provider_id}/{model.model_id}")


@models.command("unregister")
@click.argument("model_id")
@asynchronous
async def unregister(model_id: str) -> None:
    """Take a registration back."""
    from turnwire.client import Client

    async with Client.connect() as client:
        await client.unregister_model(model_id)


@models.command("pull")
@click.argument("names", nargs=-1)
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", help="Of embedding models.")
def pull(names: tuple[str, ...], precision: str) -> None:
    """Fetch the weights of models: the default ones, or those that are named."""
    from turnwire.weights.__main__ import main

    sys.exit(main(["pull", *names, "--precision", precision]))


@click.command()
@json_option
@asynchronous
async def providers(as_json: bool) -> None:
    """List the providers and their state."""
    from turnwire.client import Client
    from turnwire.common.v1 import inspect_service_pb2

    async with Client.connect() as client:
        found = await client.list_providers("inference")
    if as_json:
        print_message(inspect_service_pb2.ListProvidersResponse(providers=found))
        return
    rows = [
        (
            each.service,
            each.provider_id,
            each.provider_type,
            inspect_service_pb2.Provider.State.Name(each.state).removeprefix("STATE_").lower(),
            ", ".join(each.serves) or each.detail,
        )
        for each in found
    ]
    print_table(("SERVICE", "PROVIDER", "TYPE", "STATE", "SERVES"), rows)
