"""What goes on beside the calls about batches: native ones are looked after, and every one ends in time (promise 4)."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from farebox.accounts.sealing import Seals
from farebox.clock import DAY_US
from farebox.errors import FareboxError, StoreUnavailable
from farebox.gateway.batches.charges import Charges
from farebox.gateway.batches.making import Making
from farebox.gateway.batches.native import Native
from farebox.gateway.batches.own import OwnRuns
from farebox.gateway.batches.records import Batch, Records

_AT_ONCE: Final = 2
"""Native batches looked after at a time."""
_SWEEP_S: Final = 5.0
KEPT_US: Final = 29 * DAY_US
"""How long results can be had (Messages API, "batches")."""
Log = Callable[..., Any]


class Upkeep:
    """Called by a job about once a second, in every process; most of it only the leading one does."""

    def __init__(
        self,
        making: Making,
        native: Native,
        own: OwnRuns,
        records: Records,
        charges: Charges,
        seals: Seals,
        *,
        leads: Callable[[], bool],
        clock: Callable[[], int],
        poll_s: float,
        log: Log,
        alert: Log,
    ) -> None:
        self._making = making
        self._native = native
        self._own = own
        self._records = records
        self._charges = charges
        self._seals = seals
        self._leads = leads
        self._clock = clock
        self._poll_s = poll_s
        self._log = log
        self._alert = alert
        self._due: dict[str, float] = {}
        """When each native batch is to be asked after again, by the loop's clock."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sweep_at = 0.0

    async def tick(self) -> None:
        """Begin what is due. While the books are away it waits for them."""
        now = asyncio.get_running_loop().time()
        with contextlib.suppress(StoreUnavailable):
            if now >= self._sweep_at:
                self._sweep_at = now + _SWEEP_S
                await self._making.undo_left()
                await self._take_up()
                if self._leads():
                    await self._sweep()
            if self._leads():
                await self._look_after(now)

    async def stop(self) -> None:
        """Leave everything as it stands: whoever comes next goes on."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._own.stop()

    async def _look_after(self, now: float) -> None:
        if len(self._tasks) >= _AT_ONCE:
            return
        batches = await self._records.under_way("native")
        self._due = {batch.id: self._due.get(batch.id, 0.0) for batch in batches}
        waiting = sorted((batch for batch in batches if self._due[batch.id] <= now), key=lambda one: self._due[one.id])
        for batch in waiting:
            if len(self._tasks) < _AT_ONCE and batch.id not in self._tasks:
                self._due[batch.id] = now + self._poll_s
                task = self._tasks[batch.id] = asyncio.create_task(self._look_at(batch))
                task.add_done_callback(partial(self._looked_at, batch.id))

    def _looked_at(self, batch_id: str, _: "asyncio.Task[None]") -> None:
        self._tasks.pop(batch_id, None)

    async def _look_at(self, batch: Batch) -> None:
        try:
            await self._native.look_after(batch)
        except FareboxError as error:
            self._log("batch_not_looked_after", batch=batch.id, error=str(error))
        except Exception as error:  # noqa: BLE001  the outermost loop of a batch; what it says may quote what was said
            self._alert("batch_failed", batch=batch.id, error=type(error).__name__)

    async def _take_up(self) -> None:
        """Work on batches of ours that nobody works on, where their key is known or the server itself can open it."""
        for batch in await self._records.unattended():
            if self._own.goes_on(batch):
                continue
            if batch.sealed_key is not None:
                try:
                    self._own.attach(batch, self._seals.open_sealed(batch.sealed_key, f"batch {batch.id}"))
                except FareboxError as error:
                    self._log("batch_sealed_otherwise", batch=batch.id, error=str(error))

    async def _sweep(self) -> None:
        """End what nobody else will."""
        now_us = self._clock()
        for batch in await self._records.abandoned():
            if batch.own:
                self._log("batch_abandoned", batch=batch.id, account_id=batch.account_id)
            else:  # nobody can tell whether it was made there
                self._alert("batch_abandoned", batch=batch.id, account_id=batch.account_id, upstream=batch.upstream)
            await self._charges.end_all(batch, "canceled", "gateway_died")
            await self._records.delete(batch)
        for batch in await self._records.keyless():
            self._log("batch_key_gone", batch=batch.id, account_id=batch.account_id)
            await self._records.cancel(batch, now_us)
        for batch in await self._records.unattended():
            if self._own.works_on(batch):
                continue
            await self._charges.settle_answered(batch)
            if batch.state == "canceling" or now_us >= batch.expires_us:
                state = "expired" if now_us >= batch.expires_us else "canceled"
                await self._charges.end_all(batch, state, state)
                await self._records.end(batch, now_us)
        for batch in await self._records.old(now_us - KEPT_US):
            await self._records.archive(batch, now_us)
        if count := await self._charges.end_strays():
            self._log("batch_holds_ended", count=count)
