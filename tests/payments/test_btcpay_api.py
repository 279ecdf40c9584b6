"""BTCPay Server's API: what money depends on is read to the letter, and what is odd about one invoice stays with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any, Final

import pytest

from farebox.errors import InvalidRequest, RailTrouble
from farebox.money import NANOS_PER_USD
from farebox.payments.btcpay_api import BtcpayApi, Denied, OddAnswer
from farebox.payments.btcpay_check import EVENTS, check
from farebox.payments.rails import Sighting
from farebox.payments.records import select_topups
from farebox.secret import Secret
from tests.payments.btcpay_room import NOON_S, Room, btcpay_room, settings_of, worth
from tests.payments.fake_btcpay import KEY, STORE, FakeInvoice


@pytest.fixture
async def room(database_url: str) -> AsyncIterator[Room]:
    async with btcpay_room(database_url) as opened:
        yield opened


Spoil = Callable[[FakeInvoice], None]


def payment_says(**fields: Any) -> Spoil:
    """Have the server say other things of a payment than those that are true."""

    def spoil(invoice: FakeInvoice) -> None:
        shown = {**invoice.payments[0].shown(), **fields}
        invoice.changes["payments"] = [{name: value for name, value in shown.items() if value is not ...}]

    return spoil


def method_says(**fields: Any) -> Spoil:
    return lambda invoice: invoice.changes.update(fields)


@pytest.mark.parametrize(
    "spoil",
    [
        payment_says(value="0,5"),
        payment_says(value="1e-3"),
        payment_says(value="-0.1"),
        payment_says(value="22000000"),
        payment_says(value="0.000000001"),
        payment_says(value="NaN"),
        payment_says(value=None),
        payment_says(value=True),
        payment_says(value=...),
        payment_says(status="Confirmed"),
        payment_says(status=...),
        payment_says(id=""),
        payment_says(id="a b"),
        payment_says(id=7),
        payment_says(receivedDate="yesterday"),
        payment_says(receivedDate=0),
        payment_says(receivedDate=...),
        payment_says(receivedDate=1_795_348_800_000),
        method_says(payments=None),
        method_says(payments={"id": 1}),
        method_says(payments=["x"]),
        method_says(rate="a lot"),
        method_says(rate="-1"),
        method_says(paymentMethodId="LTC-CHAIN"),
        method_says(paymentMethodId=None),
    ],
)
async def test_an_invoice_that_nobody_can_read_credits_nothing_and_holds_up_no_other(room: Room, spoil: Spoil) -> None:
    odd_told, odd = await room.ask()
    good_told, good = await room.ask()
    for invoice in (odd, good):
        room.fake.settle(invoice, room.fake.pay(invoice))
    spoil(odd)
    await room.hear(odd.id)
    assert await room.later() == ""
    assert (await room.state(odd_told), await room.state(good_told)) == ("waiting", "credited")
    assert [kind for kind, _ in await room.incidents()] == ["difference"]
    odd.changes.clear()
    await room.later()
    assert await room.balance() == 2 * worth(good.total)


@pytest.mark.parametrize(
    "spoil",
    [
        payment_says(value=Decimal("0.00039002").__float__()),
        payment_says(receivedDate="2026-11-22T12:00:00Z"),
        payment_says(receivedDate=str(NOON_S)),
        payment_says(fee=...),
        payment_says(destination=None),
        method_says(paymentMethodId=..., paymentMethod="BTC"),
        method_says(paymentLink=None, currency=None, additionalData=None, novelty=[1]),
        method_says(due="-0.5"),
    ],
)
async def test_what_only_describes_may_be_missing_or_new(room: Room, spoil: Spoil) -> None:
    told, invoice = await room.ask()
    room.fake.settle(invoice, room.fake.pay(invoice, "0.00039002"))
    spoil(invoice)
    invoice.changes = {name: value for name, value in invoice.changes.items() if value is not ...}
    assert await room.later() == ""
    assert await room.state(told) == "credited"
    assert await room.balance() == worth(Decimal("0.00039002"))


async def test_a_payment_stays_the_same_one_when_the_server_names_its_methods_anew(room: Room) -> None:
    _, invoice = await room.ask()
    room.fake.settle(invoice, room.fake.pay(invoice))
    invoice.changes["paymentMethodId"] = "BTC"
    await room.later()
    invoice.changes.clear()
    await room.later()
    assert len(await room.payments()) == 1
    assert await room.balance() == worth(invoice.total)


@pytest.mark.parametrize(
    "answer", [(500, b"oops"), (200, b"<html>"), (200, b"[]"), (200, b"{}"), (200, b"[" * 9999), (200, b'"\xff"')]
)
async def test_an_invoice_that_fails_alone_holds_up_no_other(room: Room, answer: tuple[int, bytes]) -> None:
    odd_told, odd = await room.ask()
    good_told, good = await room.ask()
    for invoice in (odd, good):
        room.fake.settle(invoice, room.fake.pay(invoice))
    room.fake.broken[f"invoices/{odd.id}"] = answer
    await room.later()
    assert (await room.state(odd_told), await room.state(good_told)) == ("waiting", "credited")
    room.fake.broken.clear()
    assert await room.later() == ""
    assert await room.balance() == 2 * worth(good.total)


async def test_an_invoice_that_is_not_there_is_told_to_the_operator(room: Room) -> None:
    told, invoice = await room.ask()
    del room.fake.invoices[invoice.id]
    assert await room.later() == ""
    ((kind, words),) = await room.incidents()
    assert (kind, told.topup.id in words) == ("difference", True)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ((503, b"<html>"), "answers with status 503"),
        ((200, b"<html>"), "is no JSON"),
        ((200, b'{"id": ""}'), "an invoice has no id"),
        ((200, b'{"id": "../../x"}'), "an invoice has no id"),
        ((200, b'{"id": "a", "storeId": "other"}'), "of another store"),
        ((200, b'{"id": "a", "currency": "EUR"}'), "another store or currency"),
        ((200, b'{"id": "a", "amount": "2.50"}'), "another amount"),
        ((422, b'[{"path": "amount", "message": "Too \\u0007much"}]'), "status 422: Too much"),
        ((401, b'{"code": "unauthenticated", "message": "no"}'), "does not know the API key"),
        ((200, b"[" + b"0," * 3_000_000 + b"0]"), "larger than"),
    ],
)
async def test_no_topup_is_opened_where_no_invoice_can_be_made(
    room: Room, broken: tuple[int, bytes], words: str
) -> None:
    """Customers read that it does not work now, the operator why."""
    await room.look()
    room.fake.broken["/invoices"] = broken
    with pytest.raises(InvalidRequest, match="Bitcoin cannot be paid by at the moment"):
        await room.till.topups.open(room.alice, "btcpay:BTC", 25 * NANOS_PER_USD, room.now_us)
    ((event, fields),) = room.warnings
    assert event == "quote_failed"
    assert words in str(fields["error"])
    assert not await select_topups(room.store, "", ())


@pytest.mark.parametrize(
    ("rate", "works"),
    [("64390.10", True), ("66000", True), ("67000", False), ("50000", True), ("40000", False), ("0.01", False)],
)
async def test_a_rate_far_from_the_markets_is_not_gone_by(
    room: Room,
    rate: str,
    works: bool,  # noqa: FBT001  a column of the table
) -> None:
    room.fake.rate = Decimal(rate)
    if works:
        assert (await room.ask())[0].topup.rate.nanos == int(Decimal(rate) * NANOS_PER_USD)
        return
    with pytest.raises(InvalidRequest):
        await room.ask()
    assert "its rate is" in str(room.warnings[0][1]["error"])


async def test_a_method_that_the_store_does_not_offer_is_told_in_words(room: Room) -> None:
    room.fake.methods = {"BTC-CHAIN"}
    with pytest.raises(InvalidRequest, match="Lightning cannot be paid by"):
        await room.ask(25, "BTC-LN")
    assert "Payment method unavailable" in str(room.warnings[0][1]["error"])
    assert (await room.ask())[0].topup.asset == "BTC"


async def test_what_left_the_settings_keeps_its_worth_or_has_none(room: Room) -> None:
    """Satoshis stay satoshis without the rail that made them; units of a token that nobody knows wait, uncredited."""
    told, _ = await room.ask(25, "BTC-LN")

    async def came(ident: str, asset: str) -> int:
        sighting = Sighting(
            rail="gone",
            ident=ident,
            asset=asset,
            address=told.topup.address,
            units=10_000,
            confirmations=1,
            final=True,
            seen_us=room.now_us,
            topup_id=told.topup.id,
        )
        await room.till.deposits.apply([sighting], room.now_us)
        return await room.balance()

    assert await came("token", "USDC") == 0
    assert [one.state for one in await room.payments()] == ["confirming"]
    assert await came("satoshis", "BTC-LN") == worth(Decimal("0.0001"))


HOOK: Final = "https://f.example/webhooks/btcpay"


async def test_the_check_finds_nothing_to_say_where_all_is_well(room: Room) -> None:
    async with asyncio.timeout(20):
        api = BtcpayApi(settings_of(room.fake))
        assert await check(api, HOOK) == []
        room.fake.rights = {f"{right}:{STORE}" for right in room.fake.rights}
        room.fake.rights.add("btcpay.store.webhooks.canmodifywebhooks")
        hook = {"id": "1", "url": HOOK, "enabled": True, "automaticRedelivery": True}
        room.fake.webhooks = [{**hook, "authorizedEvents": {"everything": True, "specificEvents": []}}]
        assert await check(api, HOOK) == []
        room.fake.webhooks = [{**hook, "authorizedEvents": {"everything": False, "specificEvents": sorted(EVENTS)}}]
        assert await check(api, HOOK) == []
        await api.close()


async def _no_right(room: Room) -> None:
    room.fake.rights = {"btcpay.store.canviewinvoices", "btcpay.store.cancreateinvoice:another"}


async def _everything(room: Room) -> None:
    room.fake.rights = {"unrestricted"}
    hook = {"url": HOOK, "enabled": True, "authorizedEvents": {"everything": True}}
    room.fake.webhooks = [hook]


async def _no_webhook(room: Room) -> None:
    room.fake.rights.add("btcpay.store.webhooks.canmodifywebhooks")


async def _few_events(room: Room) -> None:
    await _no_webhook(room)
    events = {"everything": False, "specificEvents": sorted(EVENTS - {"InvoicePaymentSettled"})}
    room.fake.webhooks = [{"url": HOOK, "enabled": True, "automaticRedelivery": False, "authorizedEvents": events}]


async def _switched_off(room: Room) -> None:
    await _no_webhook(room)
    room.fake.webhooks = [{"url": HOOK, "enabled": False, "authorizedEvents": {"everything": True}}]


async def _down(room: Room) -> None:
    room.fake.is_down = True


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_right, ["lacks btcpay.store.cancreateinvoice for store"]),
        (_everything, ["may do everything, also send money"]),
        (_no_webhook, [f"no webhook of the store leads to {HOOK}"]),
        (_few_events, ["does not send again", "does not send InvoicePaymentSettled"]),
        (_switched_off, ["is switched off"]),
        (_down, ["cannot be asked"]),
    ],
)
async def test_the_check_says_what_is_wrong(
    room: Room, spoil: Callable[[Room], Awaitable[None]], words: list[str]
) -> None:
    await spoil(room)
    api = BtcpayApi(settings_of(room.fake))
    faults = await check(api, HOOK)
    await api.close()
    assert len(faults) == len(words)
    assert all(expected in fault for expected, fault in zip(words, faults, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"), [({"api_key": Secret("wrong")}, "does not know the API key"), ({"store": "x"}, "store x")]
)
async def test_the_check_knows_a_wrong_key_from_a_wrong_store(room: Room, changes: dict[str, Any], words: str) -> None:
    api = BtcpayApi(settings_of(room.fake, **changes))
    faults = await check(api, HOOK)
    await api.close()
    assert any(words in fault for fault in faults)
    assert KEY not in repr(faults)


async def test_a_server_that_dawdles_is_not_waited_for(room: Room) -> None:
    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    api = BtcpayApi(settings_of(room.fake, url=url), within_s=0.05)
    with pytest.raises(RailTrouble, match=r"took longer than 0\.05 s|cannot be asked"):
        await api.invoice("a")
    over.set()
    await api.close()
    server.close()


async def test_what_the_key_may_not_is_another_trouble_than_what_nobody_understands(room: Room) -> None:
    api = BtcpayApi(settings_of(room.fake))
    room.fake.rights = set()
    with pytest.raises(Denied):
        await api.invoice("a")
    room.fake.broken["/a"] = (200, b'{"id": "b"}')
    with pytest.raises(OddAnswer):
        await api.invoice("a")
    with pytest.raises(RailTrouble, match="no invoice has the id"):
        await api.invoice("../stores")
    await api.close()
