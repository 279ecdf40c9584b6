"""A gateway's payments by a BTCPay Server, without the gateway: all that is real but the server, the rates and time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final

from farebox.accounts.accounts import create_account
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.clock import US_PER_S
from farebox.money import NANOS_PER_USD
from farebox.payments.records import Payment, select_payments, select_topups
from farebox.payments.settings import BtcpaySettings, PaymentSettings
from farebox.payments.till import TillSettings, make_till
from farebox.payments.topups import Told
from farebox.payments.uris import SATOSHIS
from farebox.secret import Secret
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.payments.fake_btcpay import KEY, RATE, SECRET, STORE, FakeBtcpay, FakeInvoice, serving_btcpay
from tests.payments.fake_rates import serving_rates

NOON_S: Final = 1_795_348_800
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
RATE_NANOS: Final = int(RATE * NANOS_PER_USD)
MARKET_NANOS: Final = 64_390_100_000_000 * 99 // 100
"""What the fake sources say, less the spread of one percent."""


def settings_of(fake: FakeBtcpay, **changes: Any) -> BtcpaySettings:
    fields: dict[str, Any] = {"url": fake.url, "store": STORE, "api_key": Secret(KEY), "webhook_secret": Secret(SECRET)}
    return BtcpaySettings(**(fields | changes))


class Room:
    """A gateway's payments by a BTCPay Server, without the gateway. Alice is a customer. Its clock is set by hand."""

    def __init__(self, store: Store, fake: FakeBtcpay, rates_url: str, clock: list[int]) -> None:
        self.store = store
        self.fake = fake
        self._clock = clock
        self.warnings: list[tuple[str, dict[str, object]]] = []
        settings = TillSettings(
            payments=PaymentSettings(least_usd=1, rates_url=rates_url, open_at_once=100), btcpay=settings_of(fake)
        )
        plans = Plans([Plan("pro", 60, 1_000_000, 5, 0)])
        self.till = make_till(
            settings, store, Ledger(store), plans, site="Farebox", public_url="https://f.example", warn=self._warn
        )
        (self.rounds,) = self.till.rounds
        self.alice = 0

    def _warn(self, event: str, **fields: object) -> None:
        self.warnings.append((event, fields))

    @property
    def now_us(self) -> int:
        return self._clock[0] * US_PER_S

    def pass_s(self, seconds: int) -> None:
        self._clock[0] += seconds

    async def look(self) -> str:
        """Let the watcher look, as the gateway does; answers what is written down as its trouble."""
        await self.rounds.go(self.now_us)
        rows = await self.store.fetch("SELECT error FROM watcher WHERE name = 'btcpay'")
        return str(rows[0][0] or "")

    async def later(self, seconds: int = 61) -> str:
        """Let it look after some time, by default so much that what is open is asked about again."""
        self.pass_s(seconds)
        return await self.look()

    async def ask(self, usd: int | str = 25, asset: str = "BTC") -> tuple[Told, FakeInvoice]:
        """Open a top-up; answers it with its invoice."""
        await self.look()
        nanos = int(Decimal(usd) * NANOS_PER_USD)
        topup_id = await self.till.topups.open(self.alice, f"btcpay:{asset}", nanos, self.now_us)
        told = await self.told(topup_id)
        return told, self.fake.invoices[told.topup.reference]

    async def told(self, topup_id: str) -> Told:
        (topup,) = await select_topups(self.store, "WHERE id = ?", (topup_id,))
        return await self.till.topups.tell(topup, self.now_us)

    async def state(self, told: Told) -> str:
        """Give how a top-up stands: its state, and what is said about it."""
        standing = (await self.told(told.topup.id)).standing
        flags = [flag for flag in ("under", "over", "late", "several") if getattr(standing, flag)]
        return " ".join([standing.state, *flags])

    async def balance(self) -> int:
        rows = await self.store.fetch("SELECT posted_nanos FROM account WHERE id = ?", (self.alice,))
        return int(rows[0][0])

    async def payments(self) -> list[Payment]:
        return await select_payments(self.store, "ORDER BY seen_at, id", ())

    async def incidents(self) -> list[tuple[str, str]]:
        rows = await self.store.fetch("SELECT kind, words FROM incident WHERE closed_at IS NULL ORDER BY id")
        return [(str(kind), str(words)) for kind, words in rows]

    async def hear(self, ref: str, delivery: str = "1") -> None:
        """Write down a webhook, as the page does that takes them."""
        insert = "INSERT INTO processor_event (id, rail, ref, received_at) VALUES (?, 'btcpay', ?, ?)"
        await self.store.write([(insert, (f"btcpay:{delivery}", ref, self.now_us))])

    async def unheard(self) -> int:
        rows = await self.store.fetch("SELECT count(*) FROM processor_event WHERE done_at IS NULL")
        return int(rows[0][0])


@asynccontextmanager
async def btcpay_room(database_url: str) -> AsyncIterator[Room]:
    """Open one at noon."""
    clock = [NOON_S]
    async with (
        serving_rates(lambda: clock[0]) as rates,
        serving_btcpay(lambda: clock[0]) as fake,
    ):
        store = await open_store(database_url)
        opened = Room(store, fake, rates.url, clock)
        opened.alice = (await create_account(store, "alice@example.com", "pro", opened.now_us)).id
        try:
            yield opened
        finally:
            await opened.till.close()
            await store.close()


def worth(coins: Decimal, rate_nanos: int = RATE_NANOS) -> int:
    """Give the nano-dollars that coins are worth, rounded down as the rule says."""
    return int(coins * SATOSHIS) * rate_nanos // SATOSHIS
