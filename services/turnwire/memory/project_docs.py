"""The ready-made bank `turnwire-docs`: the project's own documents, in every tenant, to be read only."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

import turnwire
from turnwire.errors import NotFound, NotServed, TurnwireError
from turnwire.ids import new_id
from turnwire.memory.registry import OF_ALL_TENANTS, PROJECT_BANK, settle_vectors
from turnwire.memory.store import banks as stored
from turnwire.memory.store import documents as stored_documents
from turnwire.memory.store.banks import Bank
from turnwire.memory.v1 import bank_pb2, document_pb2
from turnwire.runtime.identity import DEFAULT_TENANT, acting_as

if TYPE_CHECKING:
    from turnwire.memory.embedding import Embeddings
    from turnwire.memory.insertion import Insertion
    from turnwire.memory.registry import Banks
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)
_FIRST_SECONDS, _MOST_SECONDS = 0.5, 60.0
_MAX_BYTES = 1024 * 1024
_REFERENCE = "reference/"
"""Lists of what is in the protos: twice as long as what people wrote, and in the way of every question."""
_TRANSCRIPT = re.compile(r"^```console\n.*?^```$", re.MULTILINE | re.DOTALL)
"""What a session at the terminal showed: a small model that is asked what stands there copies it as its answer."""


class ProjectDocs:
    """Makes the bank at the start, and fills it as soon as something makes vectors."""

    def __init__(self, folder: Path, store: Store, banks: Banks, embeddings: Embeddings, insertion: Insertion) -> None:
        """`folder` holds Markdown files."""
        self._folder = folder
        self._store = store
        self._banks = banks
        self._embeddings = embeddings
        self._insertion = insertion

    async def prepare(self) -> bool:
        """Makes the bank where there is none; false when no provider keeps vectors."""
        try:
            provider = self._banks.keeper("", "vector")
        except NotServed:
            return False

        async def unit(tx: Transaction) -> None:
            if await stored.by_id(tx, OF_ALL_TENANTS, PROJECT_BANK) is None:
                await stored.insert(tx, _unsettled(provider.provider_id), "", "")

        await self._store.write(unit)
        return True

    async def run(self) -> None:
        """Fills the bank; tries again while what it needs is away."""
        seconds = _FIRST_SECONDS
        while True:
            try:
                # Models that come with a provider are those of every tenant.
                with acting_as(DEFAULT_TENANT):
                    await self._fill()
            except (TurnwireError, OSError) as error:
                _log.info("project_docs_wait", error=str(error), seconds=seconds)
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, _MOST_SECONDS)
            else:
                return

    async def _fill(self) -> None:
        bank = await self._settled(await self._banks.get(OF_ALL_TENANTS, PROJECT_BANK))
        documents = await asyncio.to_thread(_documents, self._folder)
        changed = 0
        async for progress in self._insertion.insert(bank, documents):
            changed += progress.state == document_pb2.DOCUMENT_STATE_INSERTED
            if progress.state == document_pb2.DOCUMENT_STATE_FAILED:
                _log.warning(
                    "project_document_failed", document_id=progress.document_id, error=progress.failure.message
                )
                if progress.failure.retryable:
                    raise NotServed("embedding model", bank.message.vector.embedding_model)
        wanted = {document.document_id for document in documents}
        for document_id in await self._present(bank) - wanted:
            await self._insertion.delete(bank, document_id)
        _log.info("project_docs_filled", documents=len(documents), changed=changed)

    async def _settled(self, bank: Bank) -> Bank:
        """The bank with a model that is served; vectors of a model that is gone are of no use."""
        if bank.dimension:
            try:
                await self._embeddings.model(bank.message.vector.embedding_model)
            except NotFound:
                bank = await self._anew(bank)
            else:
                return bank
        model = await self._embeddings.model("")
        message = bank_pb2.MemoryBank()
        message.CopyFrom(bank.message)
        settle_vectors(message, model)
        bank = replace(bank, dimension=model.dimension, message=message)

        async def unit(tx: Transaction) -> None:
            await stored.settle(tx, bank)

        await self._store.write(unit)
        return bank

    async def _anew(self, bank: Bank) -> Bank:
        """An empty bank in the place of one, which nobody ever misses."""
        successor = _unsettled(self._banks.keeper("", "vector").provider_id)

        async def unit(tx: Transaction) -> None:
            await stored.drop(tx, bank.uid)
            await stored.insert(tx, successor, "", "")

        async with self._banks.lock(bank.uid):
            await self._store.write(unit)
            await self._banks.drop_index(bank)
        return successor

    async def _present(self, bank: Bank) -> set[str]:
        async def unit(tx: Transaction) -> set[str]:
            found: set[str] = set()
            last = ""
            while page := await stored_documents.page(tx, bank.uid, last, 500):
                last = page[-1].message.document_id
                found |= {each.message.document_id for each in page}
            return found

        return await self._store.read(unit)


def folder_of(setting: str) -> Path | None:
    """Returns the folder that a setting names: `auto` is the project's own documents, empty is none.

    The wheel carries them as `project_docs`; a checkout has them in its root and in `docs`.
    """
    if setting != "auto":
        return Path(setting) if setting else None
    package = Path(turnwire.__file__).resolve().parent
    carried, checkout = package / "project_docs", package.parents[1]
    if carried.is_dir():
        return carried
    return checkout if (checkout / "docs").is_dir() and (checkout / "ARCHITECTURE.md").is_file() else None


def _documents(folder: Path) -> list[document_pb2.Document]:
    docs = folder / "docs"
    files: dict[str, Path] = {}
    if docs.is_dir():
        # A checkout: what lies in its root, and the folder of the documents as if it were the root.
        files |= {path.name: path for path in (folder / "README.md", folder / "ARCHITECTURE.md") if path.is_file()}
        folder = docs
    files |= {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.md")) if path.is_file()}
    documents: list[document_pb2.Document] = []
    for name, path in files.items():
        text = _TRANSCRIPT.sub("", path.read_text(encoding="utf-8", errors="replace"))
        if name.startswith(_REFERENCE) and text.startswith("<!-- Generated"):
            continue
        if text.strip() and len(text.encode()) <= _MAX_BYTES:
            heading = next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("# ")), name)
            documents.append(
                document_pb2.Document(document_id=name, title=heading, mime_type="text/markdown", text=text)
            )
    return documents


def _unsettled(provider_id: str) -> Bank:
    message = bank_pb2.MemoryBank(
        bank_id=PROJECT_BANK,
        provider_id=provider_id,
        name="The documents of Turnwire",
        vector=bank_pb2.VectorBankConfig(),
        built_in=True,
    )
    message.create_time.GetCurrentTime()
    return Bank(new_id("bank"), OF_ALL_TENANTS, 0, message)
