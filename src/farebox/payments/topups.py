"""Top-ups: what a customer wants to pay, what has come, and the one entry that credits it (promise 6).

A top-up goes waiting → seen → confirming → credited; one that nobody paid in time is expired. Rails only report what
they see; `Topups.observe` is the one place where that becomes money. The id of the entry follows from the top-up's, so
that crediting it again, after a crash or by another process, changes nothing.
"""

import secrets
from typing import Final, Literal

import msgspec

from farebox.accounts.accounts import before_deposit, find_account, follow_top_ups
from farebox.billing.plans import Plans
from farebox.books.ledger import Ledger, credit
from farebox.clock import US_PER_S
from farebox.errors import BrokenInvariant, InvalidRequest, NotFound
from farebox.events.news import tell_of_credit
from farebox.money import NANOS_PER_USD, format_usd
from farebox.payments.rails import Asset, Rail
from farebox.store.protocol import Statement, Store

State = Literal["waiting", "seen", "confirming", "credited", "expired"]

LEAST_NANOS: Final = 1 * NANOS_PER_USD
MOST_NANOS: Final = 10_000 * NANOS_PER_USD
OPEN_AT_ONCE: Final = 5
_LISTED: Final = 100
_COLUMNS: Final = (
    "id, account_id, rail, asset, amount_nanos, asked_units, address, rate, state, confirmations, needed, paid_units, "
    "created_at, ends_at, changed_at, transfer_id"
)
_DUE: Final = 50


class Topup(msgspec.Struct, frozen=True):
    """One top-up. Units are of the asset's smallest, as text: more than 64 bits for some."""

    id: str
    account_id: int
    rail: str
    asset: str
    amount_nanos: int
    asked_units: str
    address: str
    rate: str
    state: State
    confirmations: int
    needed: int
    paid_units: str
    created_at_us: int
    ends_at_us: int
    changed_at_us: int
    transfer_id: str | None

    @property
    def is_open(self) -> bool:
        """Whether something may still come of it by itself."""
        return self.state not in {"credited", "expired"}

    @property
    def worth_nanos(self) -> int:
        """What has been paid is worth so much, at the rate of the quote, rounded down."""
        return self.amount_nanos * int(self.paid_units) // int(self.asked_units)

    @property
    def missing_units(self) -> int:
        """How much less than asked has been paid; 0: all of it, or more."""
        return max(0, int(self.asked_units) - int(self.paid_units))


class Topups:
    """Opens top-ups and brings them to their end. `site` and `public_url` are what mails say."""

    def __init__(
        self, store: Store, ledger: Ledger, rails: tuple[Rail, ...], plans: Plans, *, site: str, public_url: str
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._plans = plans
        self._site = site
        self._public_url = public_url
        self.rails = {rail.name: rail for rail in rails}

    @property
    def offered(self) -> list[tuple[Rail, Asset]]:
        """What can be paid with."""
        return [(rail, asset) for rail in self.rails.values() for asset in rail.assets]

    def asset_of(self, topup: Topup) -> Asset:
        """Give the asset of a top-up; of one whose rail is offered no more, what its row tells."""
        rail = self.rails.get(topup.rail)
        known = next((one for one in rail.assets if one.code == topup.asset), None) if rail else None
        return known or Asset(topup.asset, topup.asset, topup.asset, 0)

    async def open(self, account_id: int, wanted: str, amount_nanos: int, now_us: int) -> str:
        """Open a top-up by rail and asset ("simulated:BTC"); answers its id.

        Raises InvalidRequest for what is not offered, too little or too much, or too many at once.
        """
        rail, asset = next(
            ((rail, asset) for rail, asset in self.offered if f"{rail.name}:{asset.code}" == wanted), (None, None)
        )
        if rail is None or asset is None:
            raise InvalidRequest("choose one of the coins that are offered")
        if not LEAST_NANOS <= amount_nanos <= MOST_NANOS:
            least, most = LEAST_NANOS // NANOS_PER_USD, MOST_NANOS // NANOS_PER_USD
            raise InvalidRequest(f"an amount is from ${least:,} to ${most:,}")
        quote = await rail.quote(asset, amount_nanos)
        topup_id = secrets.token_hex(10)
        insert = (
            f"INSERT INTO topup ({_COLUMNS}) SELECT ?, ?, ?, ?, ?, ?, ?, ?, 'waiting', 0, ?, '0', ?, ?, ?, NULL "  # noqa: S608
            "WHERE (SELECT count(*) FROM topup WHERE account_id = ? AND state = 'waiting') < ?"
        )
        values = (
            *(topup_id, account_id, rail.name, asset.code, amount_nanos, str(quote.units), quote.address, quote.rate),
            *(quote.needed, now_us, now_us + quote.lasts_s * US_PER_S, now_us, account_id, OPEN_AT_ONCE),
        )
        if not (await self._store.write([(insert, values)]))[0]:
            raise InvalidRequest(f"at most {OPEN_AT_ONCE} top-ups wait at once: use one of those, or let it expire")
        return topup_id

    async def find(self, account_id: int, topup_id: str) -> Topup:
        """Find a top-up of an account. Raises NotFound."""
        rows = await self._select("WHERE id = ? AND account_id = ?", (topup_id, account_id))
        if not rows:
            raise NotFound("this account has no such top-up")
        return rows[0]

    async def all_of(self, account_id: int) -> list[Topup]:
        """Give the latest top-ups of an account, newest first."""
        return await self._select("WHERE account_id = ? ORDER BY created_at DESC LIMIT ?", (account_id, _LISTED))

    async def by_transfer(self, account_id: int, transfer_id: str) -> Topup | None:
        """Find the top-up that an entry has credited, if it was one."""
        rows = await self._select("WHERE account_id = ? AND transfer_id = ?", (account_id, transfer_id))
        return rows[0] if rows else None

    async def observe(self, topup: Topup, paid_units: int, confirmations: int, now_us: int) -> None:
        """Take in what a rail sees of a payment: all that was paid, and how deep it is in the chain.

        Once it is deep enough its row says how much came, for good, and that is credited, whatever was asked. Raises
        StoreUnavailable; seeing it again goes on where it stopped.
        """
        if topup.state == "credited" or not paid_units:
            return
        state = "confirming" if confirmations else "seen"
        see = "UPDATE topup SET state = ?, paid_units = ?, confirmations = ?, changed_at = ? WHERE id = ? AND "
        unsettled = "state <> 'credited' AND confirmations < needed"
        await self._store.write([(see + unsettled, (state, str(paid_units), confirmations, now_us, topup.id))])
        seen = await self.find(topup.account_id, topup.id)
        if seen.state != "credited" and seen.confirmations >= seen.needed:
            await self._credit(seen, now_us)

    async def tend(self, now_us: int) -> None:
        """Let what nobody paid in time expire, and give each simulated payment another confirmation. A job."""
        expire = "UPDATE topup SET state = 'expired', changed_at = ? WHERE state = 'waiting' AND ends_at <= ?"
        if await self._store.fetch("SELECT 1 FROM topup WHERE state = 'waiting' AND ends_at <= ? LIMIT 1", (now_us,)):
            await self._store.write([(expire, (now_us, now_us))])
        moving = "WHERE state IN ('seen', 'confirming') ORDER BY changed_at LIMIT ?"
        wrong: BrokenInvariant | None = None
        for topup in await self._select(moving, (_DUE,)):
            rail = self.rails.get(topup.rail)
            if rail is not None and rail.simulated:
                try:
                    await self.observe(topup, int(topup.paid_units), topup.confirmations + 1, now_us)
                except BrokenInvariant as error:  # those behind it must not wait for it
                    wrong = error
        if wrong is not None:
            raise wrong

    async def _credit(self, topup: Topup, now_us: int) -> None:
        """Post the entry, then say so: in this order, so that a crash between the two is made good by the next look."""
        asset = self.asset_of(topup)
        paid = f"{asset.show(int(topup.paid_units))} {asset.code}"
        transfer_id = f"topup:{topup.id}" if topup.worth_nanos else None
        news: list[Statement] = []
        if transfer_id is not None:
            before = await find_account(self._store, str(topup.account_id))
            entry = credit(
                transfer_id,
                topup.account_id,
                topup.worth_nanos,
                code="deposit",
                actor=f"rail:{topup.rail}",
                memo=f"{paid}, {topup.rate}",
            )
            posted = await self._ledger.post(entry)
            if posted.refused is not None:
                raise BrokenInvariant(f"top-up {topup.id} cannot be credited: {posted.refused}")
            if not posted.now:
                before = await before_deposit(self._store, topup.account_id, topup.worth_nanos)
            after = await follow_top_ups(self._store, before, self._plans)
            news = tell_of_credit(after, topup.worth_nanos, transfer_id, now_us)
        done = "UPDATE topup SET state = 'credited', transfer_id = ?, changed_at = ? WHERE id = ?"
        await self._store.write([self._mail(topup, paid, now_us), (done, (transfer_id, now_us, topup.id)), *news])

    def _mail(self, topup: Topup, paid: str, now_us: int) -> Statement:
        """Write the mail about a credit, unless the top-up is marked as credited, and so was told of."""
        body = (
            f"Your payment of {paid} has arrived: {format_usd(topup.worth_nanos)} were added to your balance at "
            f"{self._site}.\n\nReceipt: {self._public_url}/dashboard/receipts/topup:{topup.id}\n"
        )
        insert = (
            "INSERT INTO outbox (at, recipient, subject, body, next_at) SELECT ?, a.email, ?, ?, ? FROM topup t "
            "JOIN account a ON a.id = t.account_id WHERE t.id = ? AND t.state <> 'credited'"
        )
        return insert, (now_us, f"Your balance at {self._site} was topped up", body, now_us, topup.id)

    async def _select(self, where: str, params: tuple[str | int, ...]) -> list[Topup]:
        rows = await self._store.fetch(f"SELECT {_COLUMNS} FROM topup {where}", params)  # noqa: S608  fixed texts
        return [Topup(*row) for row in rows]
