"""One EVM chain and the books beside it: real rail, watcher and deposits over a real store; only rates are fixed."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from farebox.accounts.accounts import create_account
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.clock import US_PER_S
from farebox.money import NANOS_PER_USD
from farebox.payments.addresses import Addresses
from farebox.payments.chains.evm_watcher import EvmWatcher
from farebox.payments.coins import CoinRail
from farebox.payments.deposits import Deposits
from farebox.payments.keys import ExtendedKey
from farebox.payments.rails import Asset, Rate, Sighting, Tip
from farebox.payments.rates.rates import Rates
from farebox.payments.records import Payment, select_payments, select_topups
from farebox.payments.settings import Depth, EvmSettings, PaymentSettings, TokenSettings
from farebox.payments.topups import Told, Topups
from farebox.payments.uris import ether_uri
from farebox.payments.watching import Rounds
from farebox.secret import Secret
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.chains.evm import CHAIN_ID, EvmChain
from tests.payments.wallets import ABOUT, wallet, written

XPUB: Final = written(wallet(ABOUT).derive("m/44h/60h/0h"), "xpub")
KEY: Final = ExtendedKey(XPUB, "evm")
USDT: Final = 10**6
NOBODY: Final = "0x" + "de" * 20
"""An address that was given to no customer."""
RATES: Final = {"USDT": NANOS_PER_USD, "ETH": 4000 * NANOS_PER_USD}


class FixedRates(Rates):
    """A dollar for a USDT, 4,000 for an ether, always; or nothing at all."""

    known = True

    async def now(self, asset: str, now_us: int) -> Rate | None:
        if not self.known or asset not in RATES:
            return None
        return Rate(nanos=RATES[asset], at=now_us, spread_ppm=0, sources={"kraken": RATES[asset]})


class Watched(Deposits):
    """The real ones; they keep what they were told."""

    told: list[list[Sighting]]

    async def apply(self, sightings: "list[Sighting]", now_us: int) -> None:  # type: ignore[override]
        self.told.append(list(sightings))
        await super().apply(sightings, now_us)


class Room:
    """A gateway's payments on one EVM chain, without the gateway. Alice and bob are customers."""

    def __init__(self, store: Store, settings: EvmSettings) -> None:
        self.store = store
        self.settings = settings
        self.ahead_us = 0
        """How far the gateway's clock is ahead of this machine's."""
        payments = PaymentSettings(least_usd=1)
        self.ledger = Ledger(store)
        self.addresses = Addresses(store)
        self.rates = FixedRates(store, payments)
        tokens = tuple(Asset(token.code, token.name, settings.name, token.decimals) for token in settings.tokens)
        self.rail = CoinRail(
            settings.name,
            (Asset(settings.coin, "Ether", settings.name, 18), *tokens),
            store,
            self.addresses,
            self.rates,
            KEY,
            payments,
            depths=settings.confirmations,
            least_usd=1,
            write_uri=lambda _, address, units: ether_uri(address, chain_id=settings.chain_id, wei=units),
        )
        rails = {self.rail.name: self.rail}
        plans = Plans([Plan("pro", 60, 1_000_000, 5, 0)])
        self.deposits = Watched(store, self.ledger, plans, rails, site="Farebox", public_url="https://f.example")
        self.deposits.told = []
        self.watcher = EvmWatcher(store, self.deposits, settings, self.addresses)
        self.warnings: list[str] = []
        self.rounds = Rounds(store, self.watcher, self._warn)
        self.topups = Topups(store, self.deposits, (self.rail,), most_nanos=10**6 * NANOS_PER_USD, open_at_once=100)
        self.alice = self.bob = 0

    def now(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us

    async def move_in(self) -> None:
        self.alice = (await create_account(self.store, "alice@example.com", "pro", self.now())).id
        self.bob = (await create_account(self.store, "bob@example.com", "pro", self.now())).id

    async def look(self) -> Tip:
        """Let the watcher look once. Raises what it raises."""
        return await self.watcher.look(self.now())

    async def go(self) -> str:
        """Let it look once as the gateway does; answers what is written down as its trouble."""
        await self.rounds.go(self.now())
        rows = await self.store.fetch("SELECT error FROM watcher WHERE name = ?", (self.settings.name,))
        return str(rows[0][0] or "")

    async def ask(self, usd: int, asset: str = "USDT", account: int = 0, ago_s: int = 0) -> Told:
        """Open a top-up, as if that had been some time ago."""
        await self.rounds.go(self.now())
        now_us = self.now() - ago_s * US_PER_S
        account = account or self.alice
        opened = await self.topups.open(account, f"{self.settings.name}:{asset}", usd * NANOS_PER_USD, now_us)
        return await self.told(opened)

    async def told(self, topup_id: str) -> Told:
        (topup,) = await select_topups(self.store, "WHERE id = ?", (topup_id,))
        return await self.topups.tell(topup, self.now())

    async def state(self, told: Told) -> str:
        """Give how a top-up stands: its state, and what is said about it."""
        standing = (await self.told(told.topup.id)).standing
        flags = [flag for flag in ("under", "over", "late", "several") if getattr(standing, flag)]
        return " ".join([standing.state, *flags])

    async def balance(self, account: int = 0) -> int:
        """Give an account's money in nano-dollars."""
        rows = await self.store.fetch("SELECT posted_nanos FROM account WHERE id = ?", (account or self.alice,))
        return int(rows[0][0])

    async def payments(self) -> list[Payment]:
        return await select_payments(self.store, "ORDER BY seen_at, id", ())

    async def incidents(self) -> list[str]:
        rows = await self.store.fetch("SELECT kind FROM incident ORDER BY id")
        return [str(kind) for (kind,) in rows]

    async def close(self) -> None:
        await self.watcher.close()

    def _warn(self, event: str, **fields: object) -> None:
        self.warnings.append(f"{event} {fields.get('error', '')}".strip())


def settings_of(url: str, *contracts: str, name: str = "ethereum", decimals: int = 6, needed: int = 3) -> EvmSettings:
    """Settings of an anvil: so many confirmations below $1,000, above until it is final."""
    return EvmSettings(
        name=name,
        chain_id=CHAIN_ID,
        rpc=Secret(url),
        key=Secret(XPUB),
        ether=True,
        tokens=tuple(
            TokenSettings(contract, decimals, code)
            for contract, code in zip(contracts, ("USDT", "USDC", "DAI"), strict=False)
        ),
        confirmations=(Depth(needed, 1000), Depth(0)),
    )


@asynccontextmanager
async def open_room(database_url: str, settings: EvmSettings) -> AsyncIterator[Room]:
    """Open the books and what stands beside them. Opening them again is a restart of the gateway."""
    store = await open_store(database_url)
    room = Room(store, settings)
    try:
        rows = await store.fetch("SELECT id FROM account ORDER BY id")
        if rows:
            room.alice, room.bob = int(rows[0][0]), int(rows[1][0])
        else:
            await room.move_in()
        yield room
    finally:
        await room.close()
        await store.close()


async def open_chain(url: str) -> EvmChain:
    return await EvmChain(url).open()


async def confirmed(room: Room, chain: EvmChain, blocks: int = 3) -> None:
    """Mine block by block, and look at each."""
    for _ in range(blocks):
        await chain.mine()
        assert await room.go() == ""


def one(payments: list[Payment]) -> Payment:
    (only,) = payments
    return only
