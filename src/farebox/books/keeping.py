"""Bookkeeping: all that one serving process needs of the books, opened and closed in turn."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from farebox.billing.plans import Plans
from farebox.books.ledger import Ledger
from farebox.books.runs import Runs, resolve_orphans
from farebox.books.spool import Spool
from farebox.clock import Clock
from farebox.errors import StoreUnavailable, StoreUnreachable
from farebox.store.open import open_store
from farebox.store.protocol import Store
from farebox.store.urls import is_postgres

_WAIT_S: Final = 30.0
"""A database server may start after us, on the same machine or another."""
_WAIT_PAUSE_S: Final = 0.5
Log = Callable[..., Any]


class Bookkeeping:
    """Store, ledger, run and spool of one process."""

    def __init__(self, store: Store, ledger: Ledger, runs: Runs, spool: Spool, clock: Clock, warn: Log) -> None:
        self.store = store
        self.ledger = ledger
        self.runs = runs
        self.spool = spool
        self._clock = clock
        self._warn = warn

    async def begin(self) -> None:
        """Begin a run; where nobody else can serve, end the holds that an earlier one left. Raises StoreUnavailable."""
        await self.runs.begin(self._clock())
        if self.store.shared:
            return
        await self.spool.deliver(self.ledger)
        orphans = await resolve_orphans(self.store, self.ledger)
        if orphans:
            self._warn("holds_recovered", count=orphans)

    async def beat(self) -> None:
        """Show that this process is alive, and look after what dead ones left. Called by a job."""
        await self.runs.beat(self._clock())
        if self.runs.leads:
            await self.runs.recover()

    async def close(self) -> None:
        """End the run and close the store. Without a database to tell it to, the others find out by its lease."""
        await self.ledger.drained()
        try:
            await self.runs.end(self._clock())
        except StoreUnavailable as error:
            self._warn("run_end_not_written", error=str(error))
        self.spool.close()
        await self.store.close()


async def open_books(
    url: str, *, plans: Plans, clock: Clock, spool: Path, lease_s: float, warn: Log, alert: Log
) -> Bookkeeping:
    """Open the books for a serving process; waits a while for a database server that cannot be reached yet.

    Raises StoreUnavailable; nothing is left open then.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _WAIT_S
    told = False
    while True:
        try:
            # one clock for all processes: the database's, where there is one
            store = await open_store(url, plans=plans, clock=None if is_postgres(url) else clock, serving=True)
            break
        except StoreUnreachable as error:
            if loop.time() > give_up_at:
                raise
            if not told:
                warn("database_awaited", error=str(error), for_s=_WAIT_S)
            told = True
            await asyncio.sleep(_WAIT_PAUSE_S)
    ledger = Ledger(store)
    books = Bookkeeping(
        store, ledger, Runs(store, ledger, lease_s=lease_s, warn=warn), Spool(spool, alert=alert), clock, warn
    )
    try:
        await books.begin()
    except BaseException:
        await store.close()
        raise
    return books
