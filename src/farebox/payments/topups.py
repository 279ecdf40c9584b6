"""Top-ups: what a customer wants to pay, with which coin, and how that stands.

A top-up goes waiting → seen → confirming → credited; one that nobody paid in time is expired, one whose money has left
its chain again is reversed. None of this moves money: `deposits.Deposits` does, from what comes, whatever was asked.
"""

import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from farebox.clock import US_PER_S
from farebox.errors import InvalidRequest, NotFound
from farebox.money import NANOS_PER_USD
from farebox.payments.deposits import Deposits
from farebox.payments.rails import Asset, Rail
from farebox.payments.records import (
    TOPUP_COLUMNS,
    Payment,
    Standing,
    Topup,
    payments_of,
    placeholders,
    select_payments,
    select_topups,
    standing,
)
from farebox.store.protocol import Store

_LISTED: Final = 100
_ACCOUNT: Final = "UPDATE account SET notes = notes WHERE id = ?"
"""Forms that are sent at the same time wait for each other here, so that each counts those before it."""


class Offer(msgspec.Struct, frozen=True):
    """One way to pay, and why not now; `why_not` is empty when it is to be had."""

    rail: Rail
    asset: Asset
    why_not: str = ""

    @property
    def id(self) -> str:
        """What a form says to choose it."""
        return f"{self.rail.name}:{self.asset.code}"


class Told(msgspec.Struct, frozen=True):
    """A top-up with all that came, for its page and for lists."""

    topup: Topup
    asset: Asset
    payments: list[Payment]
    standing: Standing

    @property
    def missing_units(self) -> int:
        """How much less than asked has come; 0: all of it, or more."""
        return max(0, int(self.topup.asked_units) - self.standing.paid_units)


class Topups:
    """Opens top-ups and tells how they stand."""

    def __init__(
        self, store: Store, deposits: Deposits, rails: tuple[Rail, ...], *, most_nanos: int, open_at_once: int
    ) -> None:
        self._store = store
        self._deposits = deposits
        self.rails = {rail.name: rail for rail in rails}
        self.most_nanos = most_nanos
        self.open_at_once = open_at_once

    async def offers(self, now_us: int) -> list[Offer]:
        """Give all ways to pay, those that are not to be had now with the reason."""
        return [
            Offer(rail, asset, await rail.why_not(asset, now_us))
            for rail in self.rails.values()
            for asset in rail.assets
        ]

    def asset_of(self, topup: Topup) -> Asset:
        """Give the asset of a top-up."""
        return self._deposits.asset_of(topup.rail, topup.asset)

    async def open(self, account_id: int, wanted: str, amount_nanos: int, now_us: int) -> str:
        """Open a top-up by rail and asset ("bitcoin:BTC"); answers its id.

        Raises InvalidRequest for what is not offered, too little or too much, or too many at once.
        """
        rail_name, _, code = wanted.partition(":")
        rail = self.rails.get(rail_name)
        asset = next((one for one in rail.assets if one.code == code), None) if rail else None
        if rail is None or asset is None:
            raise InvalidRequest("choose one of the coins that are offered")
        if why_not := await rail.why_not(asset, now_us):
            raise InvalidRequest(why_not)
        least = rail.least_nanos(asset)
        if not least <= amount_nanos <= self.most_nanos:
            from_to = f"from ${least // NANOS_PER_USD:,} to ${self.most_nanos // NANOS_PER_USD:,}"
            raise InvalidRequest(f"an amount in {asset.code} is {from_to}")
        await self._refuse_more(account_id, now_us)
        quote = await rail.quote(account_id, asset, amount_nanos, now_us)
        topup_id = secrets.token_hex(10)
        values = (
            *(topup_id, account_id, rail.name, asset.code, amount_nanos, str(quote.units), quote.address),
            *(quote.reference, quote.rate.nanos, msgspec.json.encode(quote.rate).decode(), quote.needed, "waiting"),
            *(now_us, now_us + quote.lasts_s * US_PER_S, now_us),
        )
        insert = (
            f"INSERT INTO topup ({TOPUP_COLUMNS}) SELECT {placeholders(values)} "  # noqa: S608  fixed texts
            "WHERE (SELECT count(*) FROM topup WHERE account_id = ? AND state = 'waiting' AND ends_at > ?) < ?"
        )
        guarded = (insert, (*values, account_id, now_us, self.open_at_once))
        if not (await self._store.write([(_ACCOUNT, (account_id,)), guarded]))[1]:
            await self._refuse_more(account_id, now_us)
            raise InvalidRequest("too many top-ups were asked for at once: try again")
        return topup_id

    async def find(self, account_id: int, topup_id: str) -> Topup:
        """Find a top-up of an account. Raises NotFound."""
        rows = await select_topups(self._store, "WHERE id = ? AND account_id = ?", (topup_id, account_id))
        if not rows:
            raise NotFound("this account has no such top-up")
        return rows[0]

    async def tell(self, topup: Topup, now_us: int) -> Told:
        """Give a top-up with all that came."""
        return (await self.tell_all([topup], now_us))[0]

    async def tell_all(self, topups: Sequence[Topup], now_us: int) -> list[Told]:
        """Give top-ups with all that came for each."""
        paid = await payments_of(self._store, [one.id for one in topups])
        return [Told(one, self.asset_of(one), paid[one.id], standing(one, paid[one.id], now_us)) for one in topups]

    async def all_of(self, account_id: int) -> list[Topup]:
        """Give the latest top-ups of an account, newest first."""
        where = "WHERE account_id = ? ORDER BY created_at DESC LIMIT ?"
        return await select_topups(self._store, where, (account_id, _LISTED))

    async def unasked(self, account_id: int) -> list[Payment]:
        """Give the payments of an account that no top-up had asked for, newest first."""
        where = "WHERE account_id = ? AND topup_id IS NULL ORDER BY seen_at DESC LIMIT ?"
        return await select_payments(self._store, where, (account_id, _LISTED))

    async def by_transfer(self, account_id: int, transfer_id: str) -> Payment | None:
        """Find the payment that an entry has credited, if it was one."""
        where = "WHERE account_id = ? AND transfer_id = ?"
        rows = await select_payments(self._store, where, (account_id, transfer_id))
        return rows[0] if rows else None

    def asset_paid(self, payment: Payment) -> Asset:
        """Give the asset of a payment."""
        return self._deposits.asset_of(payment.rail, payment.asset)

    async def tend(self, now_us: int) -> None:
        """Settle what is due, and let what nobody paid in time expire. A job."""
        await self._deposits.refresh_left(now_us)
        await self._deposits.finish(now_us)

    async def _refuse_more(self, account_id: int, now_us: int) -> None:
        rows = await self._store.fetch(
            "SELECT count(*) FROM topup WHERE account_id = ? AND state = 'waiting' AND ends_at > ?",
            (account_id, now_us),
        )
        if rows[0][0] >= self.open_at_once:
            raise InvalidRequest(
                f"at most {self.open_at_once} top-ups wait at once: pay one of those, or let it expire"
            )
