"""Top-ups and payments as rows: what was asked for, what came, and what the two together come to."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from farebox.payments.rails import Rate
from farebox.store.protocol import Store

TopupState = Literal["waiting", "seen", "confirming", "credited", "expired", "reversed"]
PaymentState = Literal["seen", "confirming", "crediting", "credited", "reversing", "gone", "stray"]

UNDER_PERCENT: Final = 99
"""Less than this of what was asked is told as too little. It is credited all the same."""
OVER_PERCENT: Final = 105
"""The rate of a quote is good for this much of what it asked; what is beyond is worth what the market says."""

TOPUP_COLUMNS: Final = (
    "id, account_id, rail, asset, amount_nanos, asked_units, address, reference, rate_nanos, pricing, needed, state, "
    "created_at, ends_at, changed_at"
)
PAYMENT_COLUMNS: Final = (
    "id, rail, asset, address, units, account_id, topup_id, tx, block, height, confirmations, needed, state, epoch, "
    "final, seen_at, changed_at, lost_at, worth_nanos, locked_units, pricing, taken_nanos, transfer_id"
)


class Payment(msgspec.Struct, frozen=True):
    """One payment. Units are of the asset's smallest, as text: more than 64 bits for some."""

    id: str
    rail: str
    asset: str
    address: str
    units: str
    account_id: int | None
    topup_id: str | None
    tx: str | None
    block: str | None
    height: int | None
    confirmations: int
    needed: int
    state: PaymentState
    epoch: int
    final: int
    seen_at_us: int
    changed_at_us: int
    lost_at_us: int | None
    worth_nanos: int | None
    locked_units: str
    pricing: str | None
    taken_nanos: int | None
    transfer_id: str | None

    @property
    def ident(self) -> str:
        """Its identity on its rail."""
        return self.id.partition(":")[2]

    @property
    def counts(self) -> bool:
        """Whether it is, or may still become, money: it has neither gone nor been taken back."""
        return self.state not in {"gone", "reversing", "stray"}

    @property
    def rates(self) -> "Pricing | None":
        """Where its worth comes from, once it has been credited."""
        return msgspec.json.decode(self.pricing, type=Pricing) if self.pricing else None


class Pricing(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rates that a payment's worth was made with: the quote's, the market's as it was seen, or both."""

    quote: Rate | None = None
    market: Rate | None = None


class Topup(msgspec.Struct, frozen=True):
    """One top-up: what was asked for. Units are of the asset's smallest, as text."""

    id: str
    account_id: int
    rail: str
    asset: str
    amount_nanos: int
    asked_units: str
    address: str
    reference: str
    rate_nanos: int
    pricing: str
    needed: int
    state: TopupState
    created_at_us: int
    ends_at_us: int
    changed_at_us: int

    @property
    def is_open(self) -> bool:
        """Whether something may still come of it by itself."""
        return self.state in {"waiting", "seen", "confirming"}

    @property
    def rate(self) -> Rate:
        """What the quote says a coin is worth."""
        return msgspec.json.decode(self.pricing, type=Rate)


class Standing(msgspec.Struct, frozen=True):
    """How a top-up stands: a pure function of what was asked, what came, and the time."""

    state: TopupState
    paid_units: int
    """What came and still counts."""
    credited_nanos: int
    confirmations: int
    """Of the payment that is furthest from being credited; 0 where all are."""
    needed: int
    under: bool = False
    over: bool = False
    late: bool = False
    several: bool = False


def standing(topup: Topup, payments: Sequence[Payment], now_us: int) -> Standing:
    """Tell how a top-up stands. What came is counted whatever was asked: under, over and late are words only."""
    live = [one for one in payments if one.counts]
    pending = [one for one in live if one.state in {"seen", "confirming"}]
    behind = min(pending, key=lambda one: one.confirmations, default=None)
    paid, asked = sum(int(one.units) for one in live), int(topup.asked_units)
    state: TopupState
    if behind is not None:
        state = "confirming" if behind.confirmations > 0 else "seen"
    elif live:
        state = "credited"
    elif any(one.epoch for one in payments):
        state = "reversed"
    else:
        state = "waiting" if now_us < topup.ends_at_us else "expired"
    return Standing(
        state=state,
        paid_units=paid,
        credited_nanos=sum(one.worth_nanos or 0 for one in live if one.state in {"crediting", "credited"}),
        confirmations=max(0, behind.confirmations) if behind else 0,
        needed=behind.needed if behind else topup.needed,
        under=bool(live) and paid * 100 < asked * UNDER_PERCENT,
        over=paid * 100 > asked * OVER_PERCENT,
        late=any(one.seen_at_us > topup.ends_at_us for one in live),
        several=len(live) > 1,
    )


async def select_topups(store: Store, where: str, params: tuple[str | int, ...]) -> list[Topup]:
    rows = await store.fetch(f"SELECT {TOPUP_COLUMNS} FROM topup {where}", params)  # noqa: S608  fixed texts
    return [Topup(*row) for row in rows]


async def select_payments(store: Store, where: str, params: tuple[str | int, ...]) -> list[Payment]:
    rows = await store.fetch(f"SELECT {PAYMENT_COLUMNS} FROM payment {where}", params)  # noqa: S608  fixed texts
    return [Payment(*row) for row in rows]


async def payments_of(store: Store, topup_ids: Sequence[str]) -> dict[str, list[Payment]]:
    """Give what came for each of some top-ups, oldest first."""
    paid: dict[str, list[Payment]] = {topup_id: [] for topup_id in topup_ids}
    if topup_ids:
        where = f"WHERE topup_id IN ({placeholders(topup_ids)}) ORDER BY seen_at, id"
        for payment in await select_payments(store, where, tuple(topup_ids)):
            paid[str(payment.topup_id)].append(payment)
    return paid


async def payments_by_ids(store: Store, ids: Sequence[str]) -> list[Payment]:
    """Give payments by their ids, those there are."""
    return await select_payments(store, f"WHERE id IN ({placeholders(ids)})", tuple(ids)) if ids else []


async def unfinished(store: Store, rail: str) -> list[Payment]:
    """Give the payments that a watcher must look at again: all that are not final."""
    return await select_payments(store, "WHERE rail = ? AND final = 0 ORDER BY seen_at, id", (rail,))


def placeholders(values: Iterable[object]) -> str:
    """Write as many `?` as there are values."""
    return ", ".join("?" for _ in values)
