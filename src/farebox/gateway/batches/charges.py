"""What items of a batch come to: each is settled like a call, once, whoever works on it (promises 1, 2, 4)."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from farebox.billing.ledger import Settle, Settled
from farebox.billing.pricing import Catalogue, Priced
from farebox.billing.usage import UnusableUsage, Usage, read_usage
from farebox.books.ledger import Ledger
from farebox.books.prices import Prices, price_list
from farebox.clock import DAY_US, US_PER_S
from farebox.errors import BrokenInvariant
from farebox.gateway.batches.records import Batch, Item, Records, parts
from farebox.gateway.metrics import Metrics
from farebox.ids import show_request_id
from farebox.logs import Seldom
from farebox.store.protocol import Row, Store

_PORTION: Final = 200
_KEPT_CHARS: Final = 200
_STATES: Final = {"finished": "succeeded", "canceled": "canceled", "expired": "expired"}
"""What has become of an item, by the outcome in its usage row."""
Log = Callable[..., Any]


class Answered(msgspec.Struct, frozen=True):
    """What matters of a message."""

    usage: dict[str, Any]
    model: str = ""
    id: str = ""
    stop_reason: str | None = None


class Sent(msgspec.Struct, frozen=True):
    """How an item was sent that Farebox sends itself; `native` says all there is to say of others."""

    upstream: str | None
    upstream_request_id: str | None = None
    attempts: int = 1
    status: int = 200
    duration_us: int = 0


class Charges:
    """Ends the holds of items. Everything may raise StoreUnavailable: doing it again changes nothing."""

    def __init__(
        self, store: Store, ledger: Ledger, prices: Prices, records: Records, metrics: Metrics, alert: Log
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._prices = prices
        self._records = records
        self._metrics = metrics
        self._alert = alert
        self._seldom_alert = Seldom(alert, DAY_US / US_PER_S)
        """For what may be so of every item of a batch."""
        self._catalogues: dict[int, Catalogue] = {}

    async def catalogue(self, version: int) -> Catalogue:
        """Give the prices that a batch was made under."""
        if version == self._prices.now.version:
            return self._prices.now
        found = self._catalogues.get(version) or await price_list(self._store, version)
        if found is None:
            raise BrokenInvariant(f"there is no version {version} of the prices")
        self._catalogues[version] = found
        return found

    def paid(self, batch: Batch, item: Item, catalogue: Catalogue, message: Answered, sent: Sent) -> Settle | None:
        """Turn an answer into what ends its hold. None when its usage cannot be read: then nothing is charged."""
        asked = catalogue.find(item.model)
        if asked is None:
            raise BrokenInvariant(f"version {catalogue.version} of the prices has no {item.model!r}")
        name = _kept(message.model) or asked.id
        try:
            usage = _at_share(read_usage(message.usage, name, long_cache_asked=item.caches_long), batch)
        except UnusableUsage:
            return None
        if not message.usage:
            return None
        unbilled = message.stop_reason == "refusal" and message.usage.get("output_tokens") == 0
        priced = Priced(0, 0) if unbilled else catalogue.price(usage, asked)
        for doubt in priced.doubts:
            self._metrics.doubts += 1
            about = f"{batch.id} {name}"
            self._seldom_alert("pricing_doubt", about, request_id=show_request_id(item.id), model=name, doubt=doubt)
        line = usage.lines[0] if len(usage.lines) == 1 else usage.summed(asked.id)
        return Settle(
            request_id=item.id,
            account_id=batch.account_id,
            kind="exact",
            model=name,
            outcome="finished",
            status=200,
            cost_nanos=priced.cost_nanos,
            list_nanos=priced.list_nanos,
            input_tokens=line.input,
            cache_write_5m_tokens=line.cache_write_5m,
            cache_write_1h_tokens=line.cache_write_1h,
            cache_read_tokens=line.cache_read,
            output_tokens=line.output,
            web_searches=usage.web_searches,
            detail=msgspec.json.encode(usage).decode(),
            stop_reason=_kept(message.stop_reason),
            message_id=_kept(message.id),
            upstream=sent.upstream,
            upstream_request_id=_kept(sent.upstream_request_id),
            attempts=sent.attempts,
            duration_us=sent.duration_us,
        )

    def free(self, batch: Batch, item: Item, outcome: str, sent: Sent | None = None) -> Settle:
        """Say how a hold ends that nothing is charged for."""
        return Settle(
            request_id=item.id,
            account_id=batch.account_id,
            kind="failed" if outcome == "refused_upstream" else "waived",
            model=item.model,
            outcome=outcome,
            status=sent.status if sent is not None else 0,
            upstream=sent.upstream if sent is not None else batch.upstream,
            attempts=sent.attempts if sent is not None else 0,
            duration_us=sent.duration_us if sent is not None else 0,
        )

    async def settle(self, settles: Sequence[Settle]) -> None:
        """End holds, and count what they came to."""
        for portion in parts(settles, _PORTION):
            answers = await asyncio.gather(*map(self._ledger.settle, portion))
            for settle, settled in zip(portion, answers, strict=True):
                self._count(settle, settled)

    async def end_free(self, batch: Batch, items: Sequence[Item], state: str, outcome: str) -> None:
        """End items that will not be answered, free of charge."""
        for portion in parts(items, _PORTION):
            held = await self._held(portion)
            await self.settle([self.free(batch, item, outcome) for item in portion if item.id in held])
            await self.note(portion, state)

    async def note(self, items: Sequence[Item], otherwise: str) -> None:
        """Note how items stand, by the usage rows that ended their holds: whoever else may have settled them meanwhile.

        Those that were never held stand as `otherwise` says.
        """
        ended = await self._ended(items)
        for state in ("succeeded", "errored", "canceled", "expired"):
            await self._records.mark([item for item in items if ended.get(item.id, otherwise) == state], state)

    async def end_all(self, batch: Batch, state: str, outcome: str) -> None:
        """End all that is open of a batch, free of charge but for what has its answer."""
        await self.settle_answered(batch)
        while items := await self._records.open_items(batch):
            await self.end_free(batch, items, state, outcome)

    async def settle_answered(self, batch: Batch) -> None:
        """Settle items whose answers are kept, as was written down with them."""
        while answered := await self._records.answered(batch):
            settles = [(item, msgspec.json.decode(text, type=Settle)) for item, text in answered]
            await self.settle([settle for _, settle in settles])
            await self.note([item for item, _ in settles], "errored")

    async def end_strays(self) -> int:
        """End standing holds of no batch: their maker was given up in the middle. Answers how many."""
        rows = await self._records.strays()
        for portion in parts(rows, _PORTION):
            settles = (
                Settle(
                    request_id=row[0],
                    account_id=row[1],
                    kind="recovered",
                    model=row[2],
                    outcome="gateway_died",
                    status=0,
                )
                for row in portion
            )
            await asyncio.gather(*map(self._ledger.settle, settles))
        return len(rows)

    async def _held(self, items: Sequence[Item]) -> set[bytes]:
        """Tell which of them are held: a batch may have been given up before all of it was."""
        return {bytes(row[0]) for row in await self._rows("SELECT request_id FROM hold", items)}

    async def _ended(self, items: Sequence[Item]) -> dict[bytes, str]:
        """Tell how those ended that are settled."""
        rows = await self._rows("SELECT request_id, outcome FROM usage", items)
        return {bytes(request_id): _STATES.get(outcome, "errored") for request_id, outcome in rows}

    async def _rows(self, select: str, items: Sequence[Item]) -> list[Row]:
        if not items:
            return []
        ids = tuple(item.id for item in items)
        return await self._store.fetch(f"{select} WHERE request_id IN ({', '.join('?' * len(ids))})", ids)

    def _count(self, settle: Settle, settled: Settled) -> None:
        if not settled.now:
            return
        metrics = self._metrics
        metrics.settled[settle.outcome] += 1
        metrics.charged_nanos += settled.charged_nanos
        metrics.shortfall_nanos += settled.shortfall_nanos
        metrics.tokens["input"] += settle.input_tokens
        metrics.tokens["output"] += settle.output_tokens
        metrics.tokens["cache_read"] += settle.cache_read_tokens
        metrics.tokens["cache_write"] += settle.cache_write_5m_tokens + settle.cache_write_1h_tokens
        if settled.shortfall_nanos:
            self._alert(
                "shortfall",
                request_id=show_request_id(settle.request_id),
                account_id=settle.account_id,
                nanos=settled.shortfall_nanos,
            )


def _at_share(usage: Usage, batch: Batch) -> Usage:
    """Price a usage as of this batch, whatever tier the upstream names: it is what was held for."""
    lines = tuple(
        msgspec.structs.replace(line, batch=not batch.own, percent=batch.percent if batch.own else 100)
        for line in usage.lines
    )
    return msgspec.structs.replace(usage, lines=lines)


def _kept(text: str | None) -> str | None:
    """Cut a text of the upstream's to what every database takes."""
    return (text or "").replace("\0", "")[:_KEPT_CHARS] or None
