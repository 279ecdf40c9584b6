"""BTCPay Server at random: whatever happens in whatever order, credited in the end is what the server calls settled."""

import random
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from farebox.errors import StoreUnavailable
from farebox.money import NANOS_PER_USD
from farebox.payments.uris import SATOSHIS
from farebox.store.protocol import Statement, Store
from tests.payments.btcpay_room import DAY_S, HOUR_S, Room, btcpay_room
from tests.payments.fake_btcpay import FakeInvoice

SEEDS = (1, 22, 333, 4444)
STEPS = 120


@pytest.fixture
async def room(database_url: str) -> AsyncIterator[Room]:
    async with btcpay_room(database_url) as opened:
        yield opened


class Fate:
    """What happens, by a seed."""

    def __init__(self, room: Room, seed: int) -> None:
        self.room = room
        self.chance = random.Random(seed)
        self.invoices: list[FakeInvoice] = []
        self.crashes = 0

    async def step(self) -> None:
        """Let one thing happen."""
        fake = self.room.fake
        acts: list[tuple[int, Any]] = [
            (2, self._ask),
            (6, self._pay),
            (6, self._settle),
            (2, self._drop),
            (1, self._restore),
            (1, self._expire),
            (3, self._webhook),
            (1, self._down),
            (12, self._look),
        ]
        if not self.invoices:
            await self._ask()
            return
        (act,) = self.chance.choices([act for _, act in acts], [weight for weight, _ in acts])
        await act()
        fake.waiting.clear()

    async def _ask(self) -> None:
        if not self.room.fake.is_down:
            asset = self.chance.choice(("BTC", "BTC-LN"))
            self.invoices.append((await self.room.ask(self.chance.randint(1, 2000), asset))[1])

    async def _pay(self) -> None:
        invoice = self.chance.choice(self.invoices)
        part = invoice.total * self.chance.choice((1, 1, 2)) / self.chance.choice((1, 1, 3))
        places = invoice.total.as_tuple().exponent
        assert isinstance(places, int)
        self.room.fake.pay(invoice, round(part, -places), vout=self.chance.randint(0, 3))

    async def _settle(self) -> None:
        for invoice in self.invoices:
            for payment in invoice.payments:
                if payment.status == "Processing" and self.chance.random() < 0.5:
                    self.room.fake.settle(invoice, payment)

    async def _drop(self) -> None:
        invoice = self.chance.choice(self.invoices)
        if invoice.payments and invoice.method == "BTC-CHAIN":
            self.room.fake.drop(invoice, self.chance.choice(invoice.payments))

    async def _restore(self) -> None:
        for invoice in self.invoices:
            for payment in invoice.payments:
                if payment.status == "Invalid" and self.chance.random() < 0.5:
                    payment.status = "Processing"

    async def _expire(self) -> None:
        self.room.fake.expire(self.chance.choice(self.invoices))

    async def _webhook(self) -> None:
        named = self.chance.choice([*(one.id for one in self.invoices), "nobodys"])
        await self.room.hear(named, secrets.token_hex(8))

    async def _down(self) -> None:
        self.room.fake.is_down = not self.room.fake.is_down

    async def _look(self) -> None:
        """Some time passes, and the gateway looks; now and then it dies on the way."""
        self.room.pass_s(self.chance.choice((1, 2, 61, 61, 600, HOUR_S)))
        try:
            await self.room.look()
            await self.room.till.topups.tend(self.room.now_us)
        except StoreUnavailable:
            self.crashes += 1


@pytest.mark.parametrize("seed", SEEDS)
async def test_in_the_end_credited_is_what_settled(room: Room, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fate = Fate(room, seed)
    write = type(room.store).write
    dying = True

    async def fragile(store: Store, statements: Sequence[Statement]) -> Any:
        """Die before or after something was written, as a killed process does. What tests do themselves is spared."""
        ours = any("processor_event (id" in sql or "INSERT INTO topup" in sql for sql, _ in statements)
        if not dying or ours or fate.chance.random() > 0.04:
            return await write(store, list(statements))
        if fate.chance.random() < 0.5:
            await write(store, list(statements))
        raise StoreUnavailable("it died")

    monkeypatch.setattr(type(room.store), "write", fragile)
    for _ in range(STEPS):
        try:
            await fate.step()
        except StoreUnavailable:
            fate.crashes += 1
    dying, room.fake.is_down = False, False
    for _ in range(3):
        assert await room.later(DAY_S) == ""
        await room.till.topups.tend(room.now_us)
    rows = await room.payments()
    settled = {
        f"{invoice.id}:{payment.id}": int(payment.value * SATOSHIS)
        for invoice in fate.invoices
        for payment in invoice.payments
        if payment.status == "Settled"
    }
    credited = {":".join(row.ident.split(":")[1::2]): int(row.units) for row in rows if row.state == "credited"}
    assert credited == settled, f"seed {seed}"
    assert {row.state for row in rows} <= {"credited", "seen", "gone"}, f"seed {seed}"
    assert await room.balance() == sum(row.worth_nanos or 0 for row in rows if row.state == "credited"), f"seed {seed}"
    assert all(not one.differences and not one.error for one in await room.till.reconciler.compare(room.now_us))
    assert fate.crashes > 0
    assert len(settled) > 5
    assert await room.balance() < 10**6 * NANOS_PER_USD
