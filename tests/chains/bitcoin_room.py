"""Bitcoin and the books beside it: real rail, watcher and deposits over a real store; only rates are fixed."""

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from farebox.accounts.accounts import create_account
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.clock import US_PER_S
from farebox.money import NANOS_PER_USD
from farebox.payments.addresses import Addresses
from farebox.payments.chains.bitcoin import BitcoinWatcher
from farebox.payments.coins import CoinRail
from farebox.payments.deposits import Deposits
from farebox.payments.keys import ExtendedKey
from farebox.payments.rails import Asset, Rate, Tip
from farebox.payments.rates.rates import Rates
from farebox.payments.reconcile import Outcome, Reconciler
from farebox.payments.records import Payment, select_payments, select_topups
from farebox.payments.settings import BitcoinSettings, PaymentSettings
from farebox.payments.topups import Told, Topups
from farebox.payments.uris import bitcoin_uri
from farebox.payments.watching import Rounds
from farebox.secret import Secret
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.chains.nodes import Bitcoind
from tests.payments.wallets import ABOUT, wallet, written

BTC: Final = Asset("BTC", "Bitcoin", "Bitcoin regtest", 8)
RATE: Final = 100_000 * NANOS_PER_USD
SATOSHI: Final = RATE // 10**8
"""Nano-dollars for one."""
AHEAD: Final = 50
"""Addresses watched beyond the last one given out: few, for each test has a wallet of its own."""


class FixedRates(Rates):
    """100,000 dollars for a bitcoin, always."""

    async def now(self, asset: str, now_us: int) -> Rate | None:
        return Rate(nanos=RATE, at=now_us, spread_ppm=0, sources={"kraken": RATE}) if asset == "BTC" else None


class Room:
    """A gateway's payments in Bitcoin, without the gateway. Alice and bob are customers."""

    def __init__(self, store: Store, settings: BitcoinSettings, node: Bitcoind) -> None:
        self.store = store
        self.settings = settings
        self.node = node
        self.ahead_us = 0
        """How far the gateway's clock is ahead of this machine's."""
        payments = PaymentSettings(least_usd=1)
        self.key = ExtendedKey(settings.key.reveal(), "bitcoin", "regtest")
        self.ledger = Ledger(store)
        self.addresses = Addresses(store)
        self.rail = CoinRail(
            "bitcoin",
            (BTC,),
            store,
            self.addresses,
            FixedRates(store, payments),
            self.key,
            payments,
            depths=settings.confirmations,
            least_usd=1,
            write_uri=lambda _, address, units: bitcoin_uri(address, units),
        )
        rails = {"bitcoin": self.rail}
        self.deposits = Deposits(
            store,
            self.ledger,
            Plans([Plan("pro", 60, 1_000_000, 5, 0)]),
            rails,
            site="F",
            public_url="https://f.example",
        )
        self.watcher = self.another_watcher()
        self.rounds = Rounds(store, self.watcher, lambda _event, **_fields: None)
        self.topups = Topups(store, self.deposits, (self.rail,), most_nanos=10**6 * NANOS_PER_USD, open_at_once=100)
        self.alice = self.bob = 0

    def another_watcher(self) -> BitcoinWatcher:
        """Make a watcher that knows nothing yet."""
        return self.watcher_with(self.settings)

    def watcher_with(self, settings: BitcoinSettings, key: ExtendedKey | None = None) -> BitcoinWatcher:
        return BitcoinWatcher(self.store, self.deposits, settings, key or self.key, self.addresses, ahead=AHEAD)

    def now(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us

    async def move_in(self) -> None:
        rows = await self.store.fetch("SELECT id FROM account ORDER BY id")
        if not rows:
            self.alice = (await create_account(self.store, "alice@example.com", "pro", self.now())).id
            self.bob = (await create_account(self.store, "bob@example.com", "pro", self.now())).id
        else:
            self.alice, self.bob = int(rows[0][0]), int(rows[1][0])

    async def look(self) -> Tip:
        """Let the watcher look once. Raises what it raises."""
        return await self.watcher.look(self.now())

    async def go(self) -> str:
        """Let it look once as the gateway does; answers what is written down as its trouble."""
        await self.rounds.go(self.now())
        rows = await self.store.fetch("SELECT error FROM watcher WHERE name = 'bitcoin'")
        return str(rows[0][0] or "")

    async def ask(self, usd: int = 50, account: int = 0, ago_s: int = 0) -> Told:
        """Open a top-up, as if that had been some time ago."""
        assert await self.go() == ""
        now_us = self.now() - ago_s * US_PER_S
        opened = await self.topups.open(account or self.alice, "bitcoin:BTC", usd * NANOS_PER_USD, now_us)
        return await self.told(opened)

    async def told(self, topup_id: str) -> Told:
        (topup,) = await select_topups(self.store, "WHERE id = ?", (topup_id,))
        return await self.topups.tell(topup, self.now())

    async def state(self, told: Told) -> str:
        """Let the watcher look; gives how a top-up stands: its state, and what is said about it."""
        await self.look()
        return await self.state_now(told)

    async def state_now(self, told: Told) -> str:
        """Give how a top-up stands by what is in the books."""
        standing = (await self.told(told.topup.id)).standing
        flags = [flag for flag in ("under", "over", "late", "several") if getattr(standing, flag)]
        return " ".join([standing.state, *flags])

    async def satoshis(self, account: int = 0) -> int:
        """Give an account's money as satoshis at the fixed rate, exactly."""
        rows = await self.store.fetch("SELECT posted_nanos FROM account WHERE id = ?", (account or self.alice,))
        whole, rest = divmod(int(rows[0][0]), SATOSHI)
        assert rest == 0
        return whole

    async def payments(self) -> list[Payment]:
        return await select_payments(self.store, "ORDER BY seen_at, id", ())

    async def incidents(self) -> list[str]:
        rows = await self.store.fetch("SELECT kind FROM incident ORDER BY id")
        return [str(kind) for (kind,) in rows]

    async def compare(self) -> Outcome:
        """Compare chain and books."""
        (outcome,) = await Reconciler(self.store, {"bitcoin": self.watcher}, {"bitcoin": (BTC,)}).compare(self.now())
        assert outcome.error == ""
        return outcome


class Keys:
    """Hands out accounts of one seed in turn, each with settings of its own: no test sees what came for another."""

    def __init__(self) -> None:
        self._numbers: Iterator[int] = itertools.count()

    def settings(self, node: Bitcoind) -> BitcoinSettings:
        number = next(self._numbers)
        return BitcoinSettings(
            key=Secret(written(wallet(ABOUT).derive(f"m/84h/1h/{number}h"), "tpub")),
            rpc=node.url,
            rpc_user=node.user,
            rpc_password=Secret(node.password),
            network="regtest",
            wallet=f"watch-{number}",
        )


@asynccontextmanager
async def open_room(database_url: str, settings: BitcoinSettings, node: Bitcoind) -> AsyncIterator[Room]:
    """Open the books and what stands beside them. Opening them again is a restart of the gateway."""
    store = await open_store(database_url)
    room = Room(store, settings, node)
    try:
        await room.move_in()
        yield room
    finally:
        await room.watcher.close()
        await store.close()


def changed(settings: BitcoinSettings, **values: object) -> BitcoinSettings:
    return msgspec.structs.replace(settings, **values)


def close_wallets(node: Bitcoind) -> None:
    """Let a node forget the wallets of tests: it tells each of every block."""
    for name in node.ask("listwallets"):
        if name.startswith("watch-"):
            node.ask("unloadwallet", name, *(False,))
