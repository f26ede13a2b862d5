"""What crashes and absent providers leave behind, removed: hidden versions, and indexes of banks that are gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from turnwire.errors import TurnwireError
from turnwire.memory.store import banks as stored_banks
from turnwire.memory.store import documents as stored

if TYPE_CHECKING:
    from turnwire.memory.registry import Banks
    from turnwire.memory.store.banks import Bank
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)
_SECONDS = 60.0


class Sweep:
    """Looks for what was left, at the start and from time to time."""

    def __init__(self, store: Store, banks: Banks) -> None:
        """Works on the banks of `store`."""
        self._store = store
        self._banks = banks

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            try:
                await self.once()
            except TurnwireError as error:
                _log.warning("sweep_failed", error=error.message)
            await asyncio.sleep(_SECONDS)

    async def once(self) -> None:
        """Removes what can be removed now."""

        async def unit(tx: Transaction) -> tuple[list[Bank], list[Bank]]:
            return await stored_banks.dropped(tx), await stored_banks.with_hidden(tx)

        dropped, unclean = await self._store.read(unit)
        for bank in dropped:
            async with self._banks.lock(bank.uid):
                await self._banks.drop_index(bank)
        for bank in unclean:
            await self._clean(bank)

    async def _clean(self, bank: Bank) -> None:
        # With the lock nothing is hidden that is still to be shown.
        async with self._banks.lock(bank.uid):

            async def hidden(tx: Transaction) -> tuple[str, ...]:
                return await stored.hidden(tx, bank.uid)

            revisions = await self._store.read(hidden)

            async def forget(tx: Transaction) -> None:
                await stored.forget(tx, revisions)

            try:
                await self._banks.provider(bank).remove(bank.place, revisions)
            except TurnwireError as error:
                _log.warning("versions_left", bank_id=bank.message.bank_id, error=error.message)
                return
            await self._store.write(forget)
            _log.info("versions_removed", bank_id=bank.message.bank_id, count=len(revisions))
