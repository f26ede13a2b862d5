"""The lease of this process: while it is good, the turns that name it are its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from turnwire.agent.store import leases, ownership
from turnwire.errors import StoreUnavailable
from turnwire.ids import new_id
from turnwire.runtime.failpoints import Boundary
from turnwire.runtime.steady_clock import since_boot

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnwire.runtime.settings import AgentSettings
    from turnwire.runtime.storage import Store, Transaction

_log = structlog.get_logger(__name__)

_GOOD_PART = 0.7
"""A lease whose last renewal began longer ago than this part of it is not acted on: the rest is for being wrong."""
_AGAIN_SECONDS = 0.2
_TAKING = Boundary("agent.lease_taken")
_RENEWAL = Boundary("agent.lease_renewed")
_ENDING = Boundary("agent.lease_ended")


class Lease:
    """Renewed from the loop that runs the turns: a process whose loop stands still keeps nothing.

    Whether it has ended is for the clock of the database to say. The clock here only says when to be careful.
    """

    def __init__(
        self, store: Store, settings: AgentSettings, *, instance_id: str, address: str, exclusive: bool
    ) -> None:
        """`exclusive`: the process holds the lock of its database, and its lease lasts for as long as it lives."""
        self.instance_id = instance_id
        self.exclusive = exclusive
        self._store = store
        self._seconds = settings.lease_seconds
        self._renew_seconds = settings.lease_renew_seconds
        self._address = address
        self._began = float("-inf")
        """When the last good renewal began."""
        self._held = False
        self._former: list[str] = []
        """Names that this process has given up, and whose leases it has not ended yet."""
        self._renewed = asyncio.Event()

    @property
    def good(self) -> bool:
        """True while this process may show and begin things."""
        return self._held and (self.exclusive or self._age() <= self._seconds * _GOOD_PART)

    async def lit(self) -> None:
        """Returns when the lease is good."""
        while not self.good:
            await self._renewed.wait()

    async def take(self) -> None:
        """Begins a lease.

        Raises:
            StoreUnavailable: the database cannot be used now.
        """
        began = since_boot()
        seconds = None if self.exclusive else self._seconds
        former = list(self._former)

        async def unit(tx: Transaction) -> None:
            if self.exclusive:
                await leases.end_all(tx)
            # By the clock of the database they may be good for long: where it was set back, or this one was wrong.
            for instance_id in former:
                await leases.end(tx, instance_id)
            await leases.take(tx, self.instance_id, self._address, seconds)

        async with _TAKING:
            await self._store.write(unit)
        self._held = True
        del self._former[: len(former)]
        self._note(began)

    async def run(self, *, lost: Callable[[], None], lit_again: Callable[[], None]) -> None:
        """Renews the lease until it is cancelled.

        `lost` is called when it has ended: what this process ran may be another's. It begins anew then, as another
        owner. `lit_again` is called when it is good after it was not.
        """
        pause = self._renew_seconds
        while not self.exclusive:
            await asyncio.sleep(pause)
            if self._held and self._age() > self._seconds:
                self._lose(lost)
            was_good = self.good
            try:
                await self._renew_or_take(lost)
            except (StoreUnavailable, TimeoutError) as error:
                told = str(error) or "the database did not answer in time; it is asked again"
                _log.warning("lease_not_renewed", instance_id=self.instance_id, error=told)
                pause = min(_AGAIN_SECONDS, self._renew_seconds)
                continue
            except Exception:
                # Whatever it is: who does not renew goes dark, and has to go on trying.
                _log.exception("lease_defect", instance_id=self.instance_id)
                continue
            pause = self._renew_seconds
            if self.good and not was_good:
                lit_again()

    async def end(self) -> None:
        """Gives the lease back, and what is still owned under it: other replicas need not wait for its end."""
        self._held = False

        async def unit(tx: Transaction) -> None:
            await ownership.release_all(tx, self.instance_id)
            await leases.end(tx, self.instance_id)

        async with _ENDING:
            await self._store.write(unit)

    async def _renew_or_take(self, lost: Callable[[], None]) -> None:
        async with asyncio.timeout(self._seconds * _GOOD_PART):
            if self._held:
                began = since_boot()
                async with _RENEWAL:
                    renewed = await self._store.write(lambda tx: leases.renew(tx, self.instance_id, self._seconds))
                if renewed:
                    self._note(began)
                    return
                self._lose(lost)
            await self.take()

    def _lose(self, lost: Callable[[], None]) -> None:
        _log.warning("lease_lost", instance_id=self.instance_id, age_seconds=round(self._age(), 3))
        self._held = False
        self._former.append(self.instance_id)
        # Under another name: the turns of the old one are for whoever claims them, this process too.
        self.instance_id = new_id("inst")
        lost()

    def _note(self, began: float) -> None:
        self._began = began
        renewed, self._renewed = self._renewed, asyncio.Event()
        renewed.set()

    def _age(self) -> float:
        return since_boot() - self._began
