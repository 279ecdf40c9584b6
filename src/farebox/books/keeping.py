"""Bookkeeping: all that one serving process needs of the books, opened and closed in turn."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from farebox.billing.plans import Plans
from farebox.books.days import close_days, close_hours
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
_LOOK_BACK_S: Final = 0.5
Log = Callable[..., Any]


class Bookkeeping:
    """Store, ledger, run and spool of one process, and the clock that all processes of these books share."""

    def __init__(
        self, store: Store, ledger: Ledger, runs: Runs, spool: Spool, clock: Clock, *, warn: Log, alert: Log
    ) -> None:
        self.store = store
        self.ledger = ledger
        self.runs = runs
        self.spool = spool
        self.clock = clock
        self._warn = warn
        self._alert = alert
        self._beats_at = self._looks_back_at = 0.0
        self.available = True
        """Whether the books could be written when that was last tried."""

    async def begin(self) -> None:
        """Begin a run; where nobody else can serve, end the holds that an earlier one left. Raises StoreUnavailable."""
        await self.runs.begin(self.clock())
        if self.store.shared:
            await self.spool.open()
            return
        if not await self._resolve():
            raise StoreUnavailable("charges of an earlier process are in the spool, which cannot be read; see the log")

    async def _resolve(self) -> bool:
        """End what processes left that are gone; False where their spools cannot be read. Raises StoreUnavailable.

        Who has gone is seen first, then their spools are delivered, then the holds end: a charge is never too late.
        """
        gone = await self.runs.look_back(self.clock())
        if not await self.spool.deliver(self.ledger, lambda *_: None):
            return False
        orphans = await resolve_orphans(self.store, self.ledger, gone)
        self.runs.predecessors -= gone  # not before: what failed so far is tried again
        if orphans:
            self._warn("holds_recovered", count=orphans)
        return True

    async def beat(self) -> None:
        """Show that this process is alive, and look after what dead ones left: when it is time to, or in trouble.

        In trouble it finds out whether the books can be written. Called by a job, about once a second.
        """
        now = asyncio.get_running_loop().time()
        trouble = self.ledger.trouble
        in_trouble = trouble is not None or not self.available
        if not self.store.shared:
            await self._follow_on(now)
        if not in_trouble and (now < self._beats_at or not self.store.shared):
            return
        self._beats_at = now + self.runs.beat_s
        try:
            await self.runs.beat(self.clock())
            if self.runs.leads and self.store.shared:
                await self.runs.recover()
        except StoreUnavailable as error:
            if self.available:
                self._alert("books_unavailable", error=str(error))
            self.available = False
            return
        if not self.available:
            self._warn("books_available_again")
        elif trouble is not None:
            self._warn("books_faltered", error=str(trouble))
        self.available, self.ledger.trouble = True, None

    async def _follow_on(self, now: float) -> None:
        """Take over from processes that end their last calls: the lead when it is free, what they left when they go."""
        if not self.runs.leads:
            self.runs.claim()
        if self.runs.predecessors and now >= self._looks_back_at and self.available:
            self._looks_back_at = now + _LOOK_BACK_S
            with contextlib.suppress(StoreUnavailable):  # tried again; `beat` tells of the trouble
                await self._resolve()

    async def close_days(self) -> list[str]:
        """Close the hours and days that are over, if it is this process that does so for all; answers the days."""
        if not self.runs.leads:
            return []
        now_us = await _time_of(self.store)
        await close_hours(self.store, now_us)
        return await close_days(self.store, now_us)

    async def close(self) -> None:
        """End the run and close the store. Without a database to tell it to, the others find out by its lease."""
        await self.ledger.drained()
        try:
            await self.runs.end(self.clock())
        except StoreUnavailable as error:
            self._warn("run_end_not_written", error=str(error))
        self.spool.close()
        await self.store.close()


async def open_books(
    url: str,
    *,
    plans: Plans,
    clock: Clock,
    spool: Path,
    lease_s: float,
    warn: Log,
    alert: Log,
    inherited_lock: int | None = None,
) -> Bookkeeping:
    """Open the books for a serving process; waits a while for a database server that cannot be reached yet.

    One that takes over inherits the lock of the books, where they have one. Raises StoreUnavailable; nothing
    is left open then.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _WAIT_S
    told = False
    while True:
        try:
            # one clock for all processes: the database's, where there is one
            store = await open_store(
                url,
                plans=plans,
                clock=None if is_postgres(url) else clock,
                serving=True,
                inherited_lock=inherited_lock,
            )
            break
        except StoreUnreachable as error:
            if loop.time() > give_up_at:
                raise
            if not told:
                warn("database_awaited", error=str(error), for_s=_WAIT_S)
            told = True
            await asyncio.sleep(_WAIT_PAUSE_S)
    ledger = Ledger(store)
    try:
        books = Bookkeeping(
            store,
            ledger,
            Runs(store, ledger, lease_s=lease_s, warn=warn),
            Spool(spool, alert=alert),
            await _common_clock(store, clock),
            warn=warn,
            alert=alert,
        )
        await books.begin()
    except BaseException:
        await store.close()
        raise
    return books


async def _common_clock(store: Store, clock: Clock) -> Clock:
    """Give the time of a store that several processes share, whatever the clock of this machine says."""
    if not store.shared:
        return clock
    ahead_us = await _time_of(store) - clock()
    return lambda: clock() + ahead_us


async def _time_of(store: Store) -> int:
    """Ask a store for the moment that its entries would get."""
    return int((await store.fetch("SELECT now_us()"))[0][0])
