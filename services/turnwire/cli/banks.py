"""`turnwire banks`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from google.protobuf import json_format

from turnwire.cli.options import asynchronous, json_option
from turnwire.cli.printing import all_pages, print_document, print_message, print_table, shortened, when

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.client.banks import Banks
    from turnwire.memory.v1 import bank_pb2, document_pb2

_KINDS = ("vector", "keyword", "keyvalue", "graph")
_ENDINGS = (".md", ".markdown", ".txt", ".html", ".htm", ".pdf", ".docx", ".csv")
_REQUEST_BYTES = 2 * 1024 * 1024
_REQUEST_DOCUMENTS = 200


@click.group()
def banks() -> None:
    """List, show, make, fill, ask and delete memory banks."""


@banks.command("list")
@json_option
@asynchronous
async def list_banks(as_json: bool) -> None:
    """List the banks."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await all_pages(client.banks.list, "banks")
    if as_json:
        print_message(response)
        return
    rows = [
        (bank.bank_id, bank.WhichOneof("config"), bank.documents, bank.chunks, bank.provider_id, when(bank.create_time))
        for bank in response.banks
    ]
    print_table(("BANK", "KIND", "DOCUMENTS", "CHUNKS", "PROVIDER", "MADE"), rows)


@banks.command("get")
@click.argument("bank_id")
@json_option
@asynchronous
async def get_bank(bank_id: str, as_json: bool) -> None:
    """Show a bank."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        print_document(await client.banks.get(bank_id), as_json=as_json)


@banks.command("create")
@click.argument("bank_id")
@click.option("--kind", type=click.Choice(_KINDS), default="vector", show_default=True, help="How things are found.")
@click.option("--name", default="", help="A name for people.")
@click.option("--provider", "provider_id", default="", help="Who keeps it. [the first for the kind]")
@click.option("--embedding-model", default="", help="What makes the vectors. [the first embedding model]")
@click.option("--chunk-size", type=click.IntRange(16, 8192), help="Tokens of a chunk. [256]")
@click.option("--overlap", type=click.IntRange(1), help="Tokens that two chunks share. [32]")
@click.option("--depth", type=click.IntRange(1, 2), help="How far around an entity a graph is read. [1]")
@json_option
@asynchronous
async def create_bank(
    bank_id: str,
    kind: str,
    name: str,
    provider_id: str,
    embedding_model: str,
    chunk_size: int | None,
    overlap: int | None,
    depth: int | None,
    as_json: bool,
) -> None:
    """Make a bank."""
    from turnwire.cli.connecting import connected
    from turnwire.memory.v1 import bank_pb2

    bank = bank_pb2.MemoryBank(bank_id=bank_id, name=name, provider_id=provider_id)
    config = getattr(bank, kind)
    config.SetInParent()
    for option, field, value in (
        ("--embedding-model", "embedding_model", embedding_model),
        ("--chunk-size", "chunk_size_tokens", chunk_size),
        ("--overlap", "overlap_tokens", overlap),
        ("--depth", "depth", depth),
    ):
        if value and field not in config.DESCRIPTOR.fields_by_name:
            raise click.UsageError(f"{option} is nothing for a bank of the kind {kind}")
        if value:
            setattr(config, field, value)
    async with connected() as client:
        made = await client.banks.register(bank)
    if as_json:
        print_message(made)
    else:
        click.echo(made.bank_id)


@banks.command("delete")
@click.argument("bank_id")
@json_option
@asynchronous
async def delete_bank(bank_id: str, as_json: bool) -> None:
    """Delete a bank and what it holds."""
    from turnwire.cli.connecting import connected
    from turnwire.memory.v1 import memory_bank_service_pb2

    async with connected() as client:
        await client.banks.unregister(bank_id)
    if as_json:
        print_message(memory_bank_service_pb2.UnregisterMemoryBankResponse())


@banks.command("import")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--bank", "bank_id", default="", help="The bank; made when it is not there. [the name of the folder]")
@click.option(
    "--pattern", "patterns", multiple=True, help="Which files, as '*.md'; may be repeated. [what can be read]"
)
@json_option
@asynchronous
async def import_folder(folder: Path, bank_id: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Put the files of a folder into a bank; those that it holds already are left as they are.

    A document's id is its path below the folder. Hidden files and folders are passed over.
    """
    from turnwire.cli.connecting import connected
    from turnwire.memory.v1 import bank_pb2

    files = await asyncio.to_thread(_files, folder, patterns)
    if not files:
        raise click.UsageError(f"there is nothing to read in {folder}: {', '.join(patterns or _ENDINGS)}")
    bank = bank_pb2.MemoryBank(bank_id=bank_id or (await asyncio.to_thread(folder.resolve)).name)
    bank.vector.SetInParent()
    async with connected() as client:
        bank_id = await _there(client.banks, bank)
        ends = await _imported(client.banks, bank_id, folder, files, quiet=as_json)
    failed = [end for end in ends if end.HasField("failure")]
    if as_json:
        told = [json_format.MessageToDict(end, preserving_proto_field_name=True) for end in ends]
        click.echo(json.dumps({"bank_id": bank_id, "documents": told}, indent=2, ensure_ascii=False))
    else:
        click.echo(f"{bank_id}: {len(ends) - len(failed)} of {len(ends)} documents are in")
    sys.exit(1 if failed else 0)


@banks.command("query")
@click.argument("question")
@click.option("--bank", "bank_ids", multiple=True, default=("turnwire-docs",), show_default=True, help="Repeatable.")
@click.option("--max-chunks", type=click.IntRange(1, 200), default=5, show_default=True, help="At most so many.")
@click.option("--min-score", type=float, default=0.0, help="Leave out what fits less.")
@json_option
@asynchronous
async def query(question: str, bank_ids: tuple[str, ...], max_chunks: int, min_score: float, as_json: bool) -> None:
    """Show what banks hold on a question."""
    from turnwire.cli.connecting import connected

    async with connected() as client:
        response = await client.banks.query(question, bank_ids, max_chunks=max_chunks, min_score=min_score)
    for bank_id in response.unavailable_bank_ids:
        click.echo(f"{bank_id} could not be asked", err=True)
    if as_json:
        print_message(response)
        return
    for chunk in response.chunks:
        page = f", page {chunk.page}" if chunk.page else ""
        below = f" ({chunk.heading})" if chunk.heading else ""
        click.echo(f"{chunk.score:.2f}  {chunk.bank_id}/{chunk.document_id}{page}{below}")
        click.echo(f"      {shortened(chunk.text, 200)}")


async def _there(made: Banks, bank: bank_pb2.MemoryBank) -> str:
    from turnwire.errors import NotFound

    try:
        await made.get(bank.bank_id)
    except NotFound:
        await made.register(bank)
    return bank.bank_id


async def _imported(
    made: Banks, bank_id: str, folder: Path, files: Sequence[Path], *, quiet: bool
) -> list[document_pb2.DocumentProgress]:
    """Sends the files in requests of a bearable size; returns how each ended."""
    from turnwire.memory.v1 import document_pb2

    ends: list[document_pb2.DocumentProgress] = []

    async def send(documents: Sequence[document_pb2.Document]) -> None:
        async for progress in made.insert(bank_id, documents):
            if progress.state < document_pb2.DOCUMENT_STATE_INSERTED:
                continue
            ends.append(progress)
            if progress.HasField("failure"):
                click.echo(f"{progress.document_id}: {progress.failure.message}", err=True)
            elif not quiet:
                click.echo(f"{progress.document_id}: {_word(progress)}")
        for document in documents:
            await made.release(document)

    batch: list[document_pb2.Document] = []
    size = 0
    for file in files:
        data = await asyncio.to_thread(file.read_bytes)
        document = await made.document(file.relative_to(folder).as_posix(), data)
        if batch and (size + len(document.data) > _REQUEST_BYTES or len(batch) >= _REQUEST_DOCUMENTS):
            await send(batch)
            batch, size = [], 0
        batch.append(document)
        size += len(document.data)
    await send(batch)
    return ends


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.stat().st_size
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if patterns:
        return [path for path in found if any(path.relative_to(folder).match(pattern) for pattern in patterns)]
    return [path for path in found if path.suffix.lower() in _ENDINGS]


def _word(progress: document_pb2.DocumentProgress) -> str:
    from turnwire.memory.v1 import document_pb2

    if progress.state == document_pb2.DOCUMENT_STATE_UNCHANGED:
        return "unchanged"
    return f"inserted, {progress.chunks_total} chunk{'' if progress.chunks_total == 1 else 's'}"
