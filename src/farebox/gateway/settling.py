"""Settling: every admitted call ends here, once, and not before its end is on disk.

Cancelling the caller does not cancel a settlement under way. When the books cannot be written for `patience_s`, the
settle goes to the spool, a synced file, from where `retry` brings it to the books once they are back. Where not even
that is possible the answer's last bytes are not delivered, so the call becomes free.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from farebox.billing.ledger import Settle, Settled
from farebox.billing.pricing import Priced
from farebox.books.ledger import Ledger
from farebox.books.spool import Spool
from farebox.errors import FareboxError, StoreUnavailable
from farebox.gateway.call import Call, Outcome
from farebox.gateway.metrics import Metrics
from farebox.ids import show_request_id

_PAUSE_S: Final = 0.25
Log = Callable[..., Any]


_NOTHING: Final = Settled(0, 0, now=True)
"""What is in the books yet of a call whose end they could not take."""


class Settler:
    """Ends holds, and keeps those it could not end."""

    def __init__(
        self, ledger: Ledger, spool: Spool, metrics: Metrics, *, log_call: Log, alert: Log, patience_s: float = 10.0
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._metrics = metrics
        self._log_call = log_call
        self._alert = alert
        self._patience_s = patience_s
        self._running: set[asyncio.Task[Settled | None]] = set()
        self.unsettled: dict[bytes, Settle] = {}

    async def end(self, call: Call, outcome: Outcome) -> Settled | None:
        """End a call's hold and book it. None when that could not be made durable: then nothing may be delivered."""
        settle, priced = call.settlement(outcome, asyncio.get_running_loop().time())
        try:
            settled: Settled | None = await self._ledger.settle(settle)
        except asyncio.CancelledError:
            self._end_undelivered(settle)
            raise
        except FareboxError as error:
            if isinstance(error, StoreUnavailable) and not outcome.paid_by_customer:
                self.unsettled[settle.request_id] = settle  # free either way: nobody has to wait until that is written
                self._note(call, settle, _NOTHING, priced)
                return _NOTHING
            task = asyncio.create_task(self._insist(settle))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            try:
                settled = await asyncio.shield(task)
            except asyncio.CancelledError:
                task.add_done_callback(lambda _: self._end_undelivered(settle))
                raise
        if settled is not None and settled.recovered:
            if not settle.waive:
                self._alert("settled_too_late", request_id=call.shown_id, cost_nanos=settle.cost_nanos)
            settled = None  # given up by the others while this process was paused: too late to charge, so to deliver
        if settled is not None:
            self._note(call, settle, settled, priced)
        return settled

    async def retry(self) -> None:
        """End the holds that could not be ended before, and empty the spool. Called by a job."""
        try:
            for request_id, settle in list(self.unsettled.items()):
                try:
                    if owed := await self._ledger.give_back(settle, await self._ledger.settle(settle)):
                        self._alert("charge_refunded", request_id=show_request_id(request_id), nanos=owed)
                except StoreUnavailable:
                    raise
                except FareboxError as error:
                    self._alert("settlement_refused", request_id=show_request_id(request_id), error=str(error))
                self.unsettled.pop(request_id, None)
            await self._spool.deliver(self._ledger, self._count)
        except StoreUnavailable:
            return

    async def leave(self) -> None:
        """Keep on disk what could not be ended: this process goes, the next one ends it."""
        await asyncio.gather(*map(self._spool.put, self.unsettled.values()))

    async def drained(self) -> None:
        """Wait for the settlements under way."""
        while self._running:
            await asyncio.wait(self._running)

    async def _insist(self, settle: Settle) -> Settled | None:
        """Deliver a settlement again and again while the books cannot be written, for as long as patience lasts."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_s
        while True:
            await asyncio.sleep(_PAUSE_S)
            try:
                async with asyncio.timeout_at(give_up_at):
                    return await self._ledger.settle(settle)
            except (StoreUnavailable, TimeoutError) as error:
                if loop.time() < give_up_at:
                    continue
                if await self._spool.put(settle):
                    return _NOTHING  # what it comes to is counted when the books have taken it
                self.unsettled[settle.request_id] = _waived(settle)
                self._tell_not_durable(settle, error)
            except FareboxError as error:
                # refused for what it says: told without its figures, so that the hold ends all the same
                self.unsettled[settle.request_id] = _without_figures(settle)
                self._tell_not_durable(settle, error)
            return None

    def _end_undelivered(self, settle: Settle) -> None:
        """End a call whose coroutine was stopped while it was settled: of a finished answer the end does not leave.

        The settle was handed in and may have been booked: then `retry` gives back what it charged.
        """
        finished = settle.outcome == Outcome.FINISHED.value
        self.unsettled[settle.request_id] = _waived(settle) if finished else settle

    def _tell_not_durable(self, settle: Settle, error: Exception) -> None:
        self._alert("settlement_not_durable", request_id=show_request_id(settle.request_id), error=str(error))

    def _count(self, settle: Settle, settled: Settled) -> None:
        """Count what a settle came to, now that it is in the books."""
        self._metrics.charged_nanos += settled.charged_nanos
        self._metrics.shortfall_nanos += settled.shortfall_nanos
        if settled.shortfall_nanos:
            self._alert(
                "shortfall",
                request_id=show_request_id(settle.request_id),
                account_id=settle.account_id,
                nanos=settled.shortfall_nanos,
            )

    def _note(self, call: Call, settle: Settle, settled: Settled, priced: Priced) -> None:
        metrics = self._metrics
        metrics.settled[settle.outcome] += 1
        self._count(settle, settled)
        metrics.tokens["input"] += settle.input_tokens
        metrics.tokens["output"] += settle.output_tokens
        metrics.tokens["cache_read"] += settle.cache_read_tokens
        metrics.tokens["cache_write"] += settle.cache_write_5m_tokens + settle.cache_write_1h_tokens
        if settle.waive and settle.cost_nanos:
            metrics.waived_nanos += settle.cost_nanos
        for doubt in priced.doubts:
            metrics.doubts += 1
            self._alert("pricing_doubt", request_id=call.shown_id, model=settle.model, doubt=doubt)
        self._log_call(
            "call",
            request_id=call.shown_id,
            account_id=settle.account_id,
            model=settle.model,
            outcome=settle.outcome,
            status=settle.status,
            input_tokens=settle.input_tokens,
            output_tokens=settle.output_tokens,
            charged_nanos=settled.charged_nanos if settled is not _NOTHING or settle.waive else settle.cost_nanos,
            upstream=settle.upstream,
            attempts=settle.attempts,
            cause=_cause(call, settle),
            ms=settle.duration_us // 1000,
        )


def _waived(settle: Settle) -> Settle:
    """Turn the end of a call into one that is free: what is not delivered is not paid."""
    return msgspec.structs.replace(settle, kind="waived", outcome=Outcome.GATEWAY_BROKE.value, waive=True)


def _without_figures(settle: Settle) -> Settle:
    return Settle(
        request_id=settle.request_id,
        account_id=settle.account_id,
        kind="waived",
        model=settle.model,
        outcome=Outcome.GATEWAY_BROKE.value,
        status=settle.status,
        waive=True,
    )


def _cause(call: Call, settle: Settle) -> str | None:
    """Say why the last try at an upstream failed, where it did: a status, or how the connection broke."""
    if settle.outcome not in {Outcome.UPSTREAM_BROKE.value, Outcome.REFUSED_UPSTREAM.value}:
        return None
    if call.tries.last is not None:
        return str(call.tries.last)[:200]
    return f"status {call.tries.status}" if call.tries.status is not None else None
