"""`turnwire models` and `turnwire providers`."""

from __future__ import annotations

import json
import sys

import click

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import all_pages, enum_word, print_document, print_message, print_table


@click.group()
def models() -> None:
    """List, register and fetch models."""


@models.command("list")
@json_option
@asynchronous
async def list_models(as_json: bool) -> None:
    """List the models that can be used."""
    from turnwire.cli.connecting import connected
    from turnwire.inference.v1 import model_pb2

    async with connected() as client:
        response = await all_pages(client.list_models, "models")
    if as_json:
        print_message(response)
        return
    rows = [
        (
            model.model_id,
            model.provider_id,
            enum_word(model_pb2.ModelType.Name(model.type), "MODEL_TYPE_"),
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
    from turnwire.cli.connecting import connected

    async with connected() as client:
        print_document(await client.get_model(model_id), as_json=as_json)


@models.command("register")
@click.argument("model_id")
@click.option("--provider", "provider_id", default="", help="The provider that serves it.")
@click.option("--provider-model", "provider_model_id", default="", help="The provider's name for it.")
@json_option
@asynchronous
async def register(model_id: str, provider_id: str, provider_model_id: str, as_json: bool) -> None:
    """Give a model of a provider an id of its own."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        model = await client.register_model(model_id, provider_id=provider_id, provider_model_id=provider_model_id)
    if as_json:
        print_message(model)
    else:
        click.echo(f"{model.provider_id}/{model.model_id}")


@models.command("unregister")
@click.argument("model_id")
@json_option
@asynchronous
async def unregister(model_id: str, as_json: bool) -> None:
    """Take a registration back."""
    from turnwire.cli.connecting import connected
    from turnwire.inference.v1 import model_service_pb2

    async with connected() as client:
        await client.unregister_model(model_id)
    if as_json:
        print_message(model_service_pb2.UnregisterModelResponse())


@models.command("pull")
@click.argument("names", nargs=-1)
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", help="Of embedding models.")
@json_option
def pull(names: tuple[str, ...], precision: str, as_json: bool) -> None:
    """Fetch the weights of models: the default ones, or those that are named. A mesh that runs finds them by itself."""
    from turnwire.weights.__main__ import main

    code = main(["pull", *names, "--precision", precision])
    if as_json and code == 0:
        _print_cached(names)
    sys.exit(code)


def _print_cached(names: tuple[str, ...]) -> None:
    """Prints what the cache holds of models, or of the default ones."""
    from turnwire.weights import MODELS, status

    wanted = list(names) or [model.name for model in MODELS if model.default]
    told = [
        {
            "name": entry.model.name,
            "ready": entry.ready,
            "files": [{"path": str(file.path), "size": file.size, "ready": file.ready} for file in entry.files],
        }
        for entry in status(wanted)
    ]
    click.echo(json.dumps({"models": told}, indent=2))


@click.command()
@click.option(
    "--service",
    type=click.Choice(["inference", "safety", "memory", "tool_executor"]),
    default="inference",
    show_default=True,
    help="Whose providers.",
)
@json_option
@asynchronous
async def providers(service: str, as_json: bool) -> None:
    """List the providers of a service and their state."""
    from turnwire.cli.connecting import connected
    from turnwire.common.v1 import inspect_service_pb2

    async with connected() as client:
        found = await client.list_providers(service)
    if as_json:
        print_message(inspect_service_pb2.ListProvidersResponse(providers=found))
        return
    rows = [
        (
            each.service,
            each.provider_id,
            each.provider_type,
            enum_word(inspect_service_pb2.Provider.State.Name(each.state), "STATE_"),
            ", ".join(each.serves) or each.detail,
        )
        for each in found
    ]
    print_table(("SERVICE", "PROVIDER", "TYPE", "STATE", "SERVES"), rows)
