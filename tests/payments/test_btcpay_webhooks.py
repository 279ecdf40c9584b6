"""BTCPay Server's webhooks at a running gateway: who can sign is heard, nobody is believed, money comes once."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from farebox.errors import StoreUnavailable
from farebox.money import NANOS_PER_USD
from tests.payments.btcpay_room import worth
from tests.payments.fake_btcpay import KEY, SECRET, STORE, FakeBtcpay, FakeInvoice, serving_btcpay
from tests.payments.fake_rates import serving_rates
from tests.stage import OpenStage, Stage
from tests.web.browse import browser_of, enter

PATH: Final = "/webhooks/btcpay"
_WITHIN_S: Final = 20.0


class Shop:
    """A gateway that takes Bitcoin and Lightning by a BTCPay Server whose webhook leads to it."""

    def __init__(self, stage: Stage, fake: FakeBtcpay) -> None:
        self.stage = stage
        self.fake = fake

    async def ask(self, usd: int = 25, asset: str = "BTC") -> FakeInvoice:
        """Open a top-up of alice's once that is offered; answers its invoice."""
        topups, clock = self.stage.parts.till.topups, self.stage.gateway.clock

        async def offered() -> bool:
            return not any(one.why_not for one in await topups.offers(clock()))

        await until(offered)
        topup_id = await topups.open(self.stage.alice.account_id, f"btcpay:{asset}", usd * NANOS_PER_USD, clock())
        return self.fake.invoices[(await topups.find(self.stage.alice.account_id, topup_id)).reference]

    async def credited(self) -> int:
        """Give what came to alice besides what she had."""
        return (await self.stage.balance(self.stage.alice))[0] - 100 * NANOS_PER_USD

    async def credited_with(self, nanos: int) -> None:
        """Wait until that much came."""

        async def there() -> bool:
            return await self.credited() == nanos

        await until(there)

    async def events(self) -> int:
        return len(await self.stage.rows("SELECT 1 FROM processor_event"))

    async def all_done(self) -> None:
        """Wait until every webhook was gone after."""

        async def done() -> bool:
            return not await self.stage.rows("SELECT 1 FROM processor_event WHERE done_at IS NULL")

        await until(done)


async def until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(_WITHIN_S):
        while not await is_so():  # noqa: ASYNC110  it is the gateway's own doing
            await asyncio.sleep(0.02)


@pytest.fixture
async def shop(open_stage: OpenStage, tmp_path: Path) -> AsyncIterator[Shop]:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "webhook").write_text(SECRET)
    async with serving_rates() as rates, serving_btcpay() as fake:
        settings = f"""
[payments]
rates_url = "{rates.url}"
[btcpay]
url = "{fake.url}"
store = "{STORE}"
api_key = "file:{tmp_path}/key"
webhook_secret = "file:{tmp_path}/webhook"
"""
        async with open_stage(settings) as stage:
            fake.hook = f"http://127.0.0.1:{stage.gateway.port}{PATH}"
            yield Shop(stage, fake)


async def test_a_payment_is_credited_within_seconds_of_its_webhook(shop: Shop) -> None:
    """On chain and by Lightning, told and retold: two credits to the nano-dollar, receipts, and nothing more."""
    chain, lightning = await shop.ask(), await shop.ask(10, "BTC-LN")
    payment = shop.fake.pay(chain)
    shop.fake.settle(chain, payment)
    shop.fake.pay(lightning)
    assert set(await shop.fake.deliver()) == {200}
    expected = worth(chain.total) + worth(lightning.total)
    await shop.credited_with(expected)
    for kind in ("InvoicePaymentSettled", "InvoiceSettled", "InvoiceExpired", "InvoiceInvalid", "InvoiceProcessing"):
        assert await shop.fake.deliver({"type": kind, "storeId": STORE, "invoiceId": chain.id}) == [200]
    await shop.all_done()
    assert await shop.credited() == expected
    browser = await enter(shop.stage, shop.stage.alice.email)
    rows = await shop.stage.rows("SELECT transfer_id FROM payment ORDER BY asset")
    assert len(rows) == 2
    receipt = await browser.get(f"/dashboard/receipts/{rows[0][0]}")
    assert receipt.status == 200
    assert payment.id.partition("-")[0] in receipt.text
    assert not [event for event in shop.stage.events if event["level"] == "error"]


async def test_the_page_of_a_topup_shows_what_the_server_asks_for(shop: Shop) -> None:
    browser = await enter(shop.stage, shop.stage.alice.email)
    await shop.ask(1000)
    for asset, words in (("BTC", "on Bitcoin"), ("BTC-LN", "on Lightning")):
        page = await browser.get("/dashboard/topup")
        assert f"btcpay:{asset}" in page.text
        assert words in page.words
        page = await browser.submit(page, "/dashboard/topup", amount="25", coin=f"btcpay:{asset}")
        invoice = list(shop.fake.invoices.values())[-1]
        assert page.status == 200
        assert page.faults() == []
        assert invoice.destination in page.text


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (None, "no BTCPay-Sig came along"),
        (b"", "no BTCPay-Sig came along"),
        (b"sha256=", "is not of this body"),
        (b"sha256=" + b"0" * 64, "is not of this body"),
        (b"sha512=" + b"0" * 64, "is not of this body"),
        (b"\xe9\xff\x80sha256=", "is not of this body"),
        ("sha256=ünïcödé".encode(), "is not of this body"),
        (b"x" * 5000, "is not of this body"),
    ],
)
async def test_a_wrong_signature_is_refused_in_words(shop: Shop, signature: bytes | None, words: str) -> None:
    """Missing, broken or full of bytes that are no text: 401, nothing is written down, and nothing fails."""
    invoice = await shop.ask()
    body = shop.fake.body({"type": "InvoiceSettled", "storeId": STORE, "invoiceId": invoice.id}, "1")
    status, said = await shop.fake.send(body, signature)
    assert (status, words in said) == (401, True)
    assert await shop.events() == 0
    shop.fake.secret = "another"
    assert (await shop.fake.send(body, shop.fake.sign(body)))[0] == 401
    shop.fake.secret = SECRET
    assert (await shop.fake.send(body + b" ", shop.fake.sign(body)))[0] == 401
    assert await shop.events() == 0
    assert not [event for event in shop.stage.events if event["level"] == "error"]


async def test_a_replay_changes_nothing(shop: Shop) -> None:
    invoice = await shop.ask()
    shop.fake.settle(invoice, shop.fake.pay(invoice))
    shop.fake.waiting.clear()
    body = shop.fake.body({"type": "InvoiceSettled", "storeId": STORE, "invoiceId": invoice.id}, "the-same")
    for _ in range(5):
        assert (await shop.fake.send(body, shop.fake.sign(body)))[0] == 200
    await shop.credited_with(worth(invoice.total))
    assert (await shop.fake.send(body, shop.fake.sign(body)))[0] == 200
    assert await shop.events() == 1
    await shop.all_done()
    assert await shop.credited() == worth(invoice.total)


async def test_webhooks_may_come_in_any_order(shop: Shop) -> None:
    invoice = await shop.ask()
    shop.fake.settle(invoice, shop.fake.pay(invoice))
    shop.fake.waiting.reverse()
    assert set(await shop.fake.deliver()) == {200}
    await shop.credited_with(worth(invoice.total))
    await shop.all_done()
    assert await shop.credited() == worth(invoice.total)


async def test_a_lying_webhook_credits_nothing(shop: Shop) -> None:
    """It is signed and says that everything was paid; the API knows of nothing. Then of half, and half is credited."""
    invoice = await shop.ask()
    lie = {
        "type": "InvoicePaymentSettled",
        "storeId": STORE,
        "invoiceId": invoice.id,
        "paymentMethodId": "BTC-CHAIN",
        "payment": {"id": "0" * 64 + "-0", "value": "21000000", "status": "Settled", "receivedDate": 1},
        "metadata": {"orderId": "x"},
        "overPaid": True,
    }
    assert await shop.fake.deliver(lie) == [200]
    await shop.all_done()
    assert await shop.credited() == 0
    assert not await shop.stage.rows("SELECT 1 FROM payment")
    half = shop.fake.pay(invoice, "0.0002")
    shop.fake.settle(invoice, half)
    assert await shop.fake.deliver(lie) == [200]
    await shop.credited_with(worth(Decimal("0.0002")))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no json", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b"{}", 200),
        (json.dumps({"deliveryId": "1", "storeId": STORE, "invoiceId": None}).encode(), 200),
        (json.dumps({"deliveryId": "1", "storeId": STORE, "invoiceId": "../../etc"}).encode(), 200),
        (json.dumps({"deliveryId": "1", "storeId": STORE, "invoiceId": "a\0b"}).encode(), 200),
        (json.dumps({"deliveryId": "1", "storeId": "another", "invoiceId": "abc"}).encode(), 200),
        (json.dumps({"deliveryId": "1", "payoutId": "abc"}).encode(), 200),
        (b'{"pad": "' + b"x" * 65_536 + b'"}', 413),
        (b'{"pad": "' + b"x" * 1_100_000 + b'"}', 413),
    ],
)
async def test_what_is_signed_and_means_nothing_is_not_written_down(shop: Shop, body: bytes, status: int) -> None:
    assert (await shop.fake.send(body, shop.fake.sign(body)))[0] == status
    assert await shop.events() == 0
    assert not [event for event in shop.stage.events if event["level"] == "error"]


@pytest.mark.parametrize("delivery", [None, 7, "", "a b", "x" * 101, "é"])
async def test_a_delivery_without_a_name_is_told_by_its_body(shop: Shop, delivery: object) -> None:
    body = json.dumps({"deliveryId": delivery, "storeId": STORE, "invoiceId": "unknown"}).encode()
    assert [(await shop.fake.send(body, shop.fake.sign(body)))[0] for _ in range(2)] == [200, 200]
    assert await shop.events() == 1
    await shop.all_done()


async def test_while_the_books_are_away_the_server_is_asked_to_send_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, which BTCPay Server tries again; then it is taken, and credited."""
    invoice = await shop.ask()
    shop.fake.settle(invoice, shop.fake.pay(invoice))
    shop.fake.waiting = shop.fake.waiting[-1:]
    write, tries = type(shop.stage.gateway.store).write, 0

    async def away(store: Any, statements: Any) -> Any:
        nonlocal tries
        if "processor_event (id" not in statements[0][0]:
            return await write(store, statements)
        tries += 1
        if tries < 4:
            raise StoreUnavailable("the disk is full")
        return await write(store, statements)

    monkeypatch.setattr(type(shop.stage.gateway.store), "write", away)
    assert await shop.fake.deliver() == [503, 503, 503, 200]
    await shop.credited_with(worth(invoice.total))


async def test_a_flood_is_told_to_wait_and_costs_the_right_ones_nothing(shop: Shop) -> None:
    """Wrong signatures are counted apart, so that whoever sends them cannot shut out the server."""
    body = shop.fake.body({"type": "InvoiceSettled", "storeId": STORE, "invoiceId": "abc"}, "1")
    statuses = [(await shop.fake.send(body, b"sha256=0"))[0] for _ in range(70)]
    assert statuses[:60] == [401] * 60
    assert 429 in statuses
    assert (await shop.fake.send(body, shop.fake.sign(body)))[0] == 200


async def test_nothing_is_there_where_no_server_is_configured(stage: Stage) -> None:
    page = await browser_of(stage).send("POST", PATH, b"{}", {"btcpay-sig": "sha256=" + "0" * 64})
    assert page.status == 404
    assert await stage.rows("SELECT 1 FROM processor_event") == []


async def test_only_this_path_takes_what_no_page_of_ours_has_sent(shop: Shop) -> None:
    """Fetch Metadata of another site does not matter here; everywhere else it still does."""
    invoice = await shop.ask()
    body = shop.fake.body({"type": "InvoiceSettled", "storeId": STORE, "invoiceId": invoice.id}, "1")
    browser = browser_of(shop.stage)
    foreign = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    page = await browser.send("POST", PATH, body, {**foreign, "btcpay-sig": shop.fake.sign(body).decode()})
    assert page.status == 200
    for path in (f"{PATH}/", f"{PATH}/x", "/webhooks", "/login", "/dashboard/keys"):
        assert (await browser.send("POST", path, body, foreign)).status == 403, path
    assert (await browser.send("GET", PATH, b"", {})).status == 405


async def test_webhooks_that_are_lost_cost_only_time(shop: Shop) -> None:
    """None arrives: the next round that is due finds the money."""
    invoice = await shop.ask()
    shop.fake.settle(invoice, shop.fake.pay(invoice))
    assert await shop.credited() == 0
    await shop.stage.gateway.store.write([("UPDATE watcher SET cursor = '' WHERE name = 'btcpay'", ())])
    await shop.credited_with(worth(invoice.total))
