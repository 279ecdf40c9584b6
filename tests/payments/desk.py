"""A counter at which scripted payments come in: the real deposits over a real store; rail, chain and clock are ours."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import pytest

from farebox.accounts.accounts import Account, create_account, find_account
from farebox.billing.ledger import Posted, Transfer
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger, debit
from farebox.clock import US_PER_S
from farebox.money import NANOS_PER_USD
from farebox.payments.deposits import Deposits
from farebox.payments.quoting import units_for
from farebox.payments.rails import Asset, Quote, Rate, Sighting
from farebox.payments.records import Payment, Topup, payments_by_ids, select_payments, select_topups
from farebox.payments.settings import Depth, blocks_for
from farebox.payments.topups import Told, Topups
from farebox.store.open import open_store
from farebox.store.protocol import Store

USD: Final = NANOS_PER_USD
HOUR_US: Final = 3600 * US_PER_S
NOON_US: Final = 1_795_348_800_000_000
PLANS: Final = Plans([Plan("free", 60, 10**6, 5, 0), Plan("pro", 600, 10**7, 50, 50 * USD)])
DEPTHS: Final = (Depth(1, 100), Depth(2, 1000), Depth(4))
RAIL: Final = "scripted"
_HOOK: Final = (
    "INSERT INTO webhook (account_id, url, events, secret, created_at) "
    "SELECT ?, 'https://hook.example/', 'balance.credited', CAST('s' AS {}), 0"
)


class ScriptedRail:
    """Coins of which a test says what they are worth, and how deep they must be."""

    name: str = RAIL
    simulated: bool = False
    assets: tuple[Asset, ...] = (Asset("BTC", "Bitcoin", "Bitcoin", 8), Asset("ETH", "Ether", "Ethereum", 18))

    def __init__(self) -> None:
        self.market: dict[str, int | None] = {"BTC": 100_000 * USD, "ETH": 4_000 * USD}
        self.depths: tuple[Depth, ...] = DEPTHS

    async def why_not(self, asset: Asset, now_us: int) -> str:  # noqa: ARG002  a rail's
        return ""

    def least_nanos(self, asset: Asset) -> int:  # noqa: ARG002  a rail's
        return USD

    async def quote(self, account_id: int, asset: Asset, amount_nanos: int, now_us: int) -> Quote:
        rate = await self.rate(asset.code, now_us)
        assert rate is not None
        units = units_for(amount_nanos, rate.nanos, asset)
        needed = self.needed(asset.code, amount_nanos)
        return Quote(units, f"{asset.code}-of-{account_id}", rate, needed, lasts_s=20 * 60)

    async def rate(self, asset: str, now_us: int) -> Rate | None:
        nanos = self.market.get(asset)
        return None if nanos is None else Rate(nanos, now_us, 0, {"market": nanos})

    def needed(self, asset: str, worth_nanos: int | None) -> int:  # noqa: ARG002  a rail's
        return blocks_for(self.depths, worth_nanos)

    def uri(self, asset: Asset, address: str, units: int) -> str:  # noqa: ARG002  a rail's
        return address

    def tx_url(self, tx: str) -> str:  # noqa: ARG002  a rail's
        return ""


class Died(Exception):
    """What a process raises in place of being killed: nothing in the gateway catches it."""


class _Dying(Ledger):
    def __init__(self, store: Store, entry: str) -> None:
        super().__init__(store)
        self._entry = entry

    def post(self, transfer: Transfer) -> asyncio.Future[Posted]:
        if transfer.id.startswith(self._entry):
            raise Died
        return super().post(transfer)


class Desk:
    """Alice and bob are customers."""

    def __init__(self, url: str, store: Store, rail: ScriptedRail | None = None) -> None:
        self.url = url
        self.store = store
        self.ledger = Ledger(store)
        self.rail = rail or ScriptedRail()
        self.deposits = self.another(store, self.ledger)
        self.topups = Topups(store, self.deposits, (self.rail,), most_nanos=10**6 * USD, open_at_once=100)
        self.now_us = NOON_US
        self.alice = self.bob = 0

    def another(self, store: Store, ledger: Ledger) -> Deposits:
        """Make deposits as another process has them, or the next one."""
        rails = {self.rail.name: self.rail}
        return Deposits(store, ledger, PLANS, rails, site="Farebox", public_url="https://f.example")

    async def move_in(self) -> None:
        self.alice, self.bob = await self.customer("alice"), await self.customer("bob")

    async def customer(self, name: str) -> int:
        """Open an account whose owner has a webhook."""
        account = await create_account(self.store, f"{name}@example.com", "free", self.now_us)
        hook = _HOOK.format("BYTEA" if self.store.shared else "BLOB")
        await self.store.write([(hook, (account.id,))])
        return account.id

    async def ask(self, usd: int, asset: str = "BTC", account: int = 0) -> Topup:
        topup_id = await self.topups.open(account or self.alice, f"{RAIL}:{asset}", usd * USD, self.now_us)
        return (await select_topups(self.store, "WHERE id = ?", (topup_id,)))[0]

    def sees(
        self,
        topup: Topup | None,
        units: int,
        confirmations: int,
        ident: str = "p1",
        *,
        final: bool = False,
        seen_us: int | None = None,
        address: str = "nobodys",
        asset: str = "BTC",
    ) -> Sighting:
        return Sighting(
            rail=RAIL,
            ident=ident,
            asset=topup.asset if topup else asset,
            address=topup.address if topup else address,
            units=units,
            confirmations=confirmations,
            final=final,
            seen_us=self.now_us if seen_us is None else seen_us,
            tx=ident,
        )

    async def tell(self, *sightings: Sighting) -> None:
        await self.deposits.apply(sightings, self.now_us)

    async def die_before(self, entry: str, *sightings: Sighting) -> None:
        """Tell sightings to a process that dies before it posts an entry whose id begins so."""
        with pytest.raises(Died):
            await self.another(self.store, _Dying(self.store, entry)).apply(sightings, self.now_us)

    async def pay(self, usd: int, confirmations: int = 9, ident: str = "p1", account: int = 0) -> Topup:
        """Ask for a top-up in BTC and pay it exactly."""
        topup = await self.ask(usd, account=account)
        await self.tell(self.sees(topup, int(topup.asked_units), confirmations, ident))
        return topup

    async def spend(self, nanos: int, account: int = 0, tag: str = "spent") -> None:
        posted = await self.ledger.post(debit(tag, account or self.alice, nanos, actor="test", memo=""))
        assert posted.now, posted

    async def account(self, account: int = 0) -> Account:
        return await find_account(self.store, str(account or self.alice))

    async def balance(self, account: int = 0) -> int:
        return (await self.account(account)).balance_nanos

    async def payment(self, ident: str = "p1") -> Payment:
        return (await payments_by_ids(self.store, [f"{RAIL}:{ident}"]))[0]

    async def payments(self) -> list[Payment]:
        return await select_payments(self.store, "ORDER BY id", ())

    async def told(self, topup: Topup) -> Told:
        (now,) = await select_topups(self.store, "WHERE id = ?", (topup.id,))
        return await self.topups.tell(now, self.now_us)

    async def entries(self) -> dict[str, tuple[str, str, int]]:
        """Give the entries about payments: from, to, how much."""
        rows = await self.store.fetch(
            "SELECT id, debit_account, credit_account, amount_nanos FROM transfer WHERE actor LIKE 'rail:%' ORDER BY id"
        )
        return {str(row[0]): (str(row[1]), str(row[2]), int(row[3])) for row in rows}

    async def mails(self) -> list[str]:
        return [row[0] for row in await self.store.fetch("SELECT subject FROM outbox ORDER BY id")]

    async def hooks(self) -> int:
        return int((await self.store.fetch("SELECT count(*) FROM delivery"))[0][0])

    async def incidents(self) -> list[str]:
        rows = await self.store.fetch("SELECT kind FROM incident WHERE closed_at IS NULL ORDER BY id")
        return [row[0] for row in rows]

    async def tend(self, *, after_us: int = 0, deposits: Sequence[Deposits] = ()) -> None:
        """Let time pass, and settle what is due."""
        self.now_us += after_us
        for one in deposits or (self.deposits,):
            await one.finish(self.now_us)


@asynccontextmanager
async def open_desk(url: str) -> AsyncIterator[Desk]:
    desks: list[Desk] = []
    store = await open_store(url, plans=PLANS, clock=lambda: desks[0].now_us if desks else NOON_US)
    try:
        desk = Desk(url, store)
        desks.append(desk)
        await desk.move_in()
        yield desk
    finally:
        await store.close()
