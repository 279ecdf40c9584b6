"""BTCPay Server: what its API says came is credited once, whatever its webhooks say, and whenever it can be asked.

The server is a stand-in that follows the documentation (fake_btcpay.py).
"""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from farebox.clock import US_PER_S
from farebox.payments.btcpay_api import BtcpayApi
from farebox.payments.btcpay_watcher import BtcpayWatcher
from farebox.payments.uris import SATOSHIS
from tests.payments.btcpay_room import DAY_S, HOUR_S, MARKET_NANOS, RATE_NANOS, Room, btcpay_room, settings_of, worth
from tests.payments.fake_btcpay import RATE, STORE, FakeInvoice


@pytest.fixture
async def room(database_url: str) -> AsyncIterator[Room]:
    async with btcpay_room(database_url) as opened:
        yield opened


async def test_a_topup_is_an_invoice_with_the_servers_own_rate(room: Room) -> None:
    """One way to pay, all that matters said with it: nothing is left to the store's settings."""
    told, invoice = await room.ask("25.001")
    topup = told.topup
    assert topup.address == invoice.destination
    assert int(topup.asked_units) == invoice.total * SATOSHIS == 39017
    assert (topup.rate.nanos, topup.rate.sources) == (RATE_NANOS, {"btcpay": RATE_NANOS})
    assert topup.ends_at_us == room.now_us + 20 * 60 * US_PER_S
    asked = dict(invoice.asked)
    assert (asked.pop("amount"), asked.pop("currency")) == ("25.01", "USD")
    assert asked.pop("metadata").keys() == {"orderId"}
    assert asked.pop("checkout") == {
        "paymentMethods": ["BTC-CHAIN"],
        "defaultPaymentMethod": "BTC-CHAIN",
        "lazyPaymentMethods": False,
        "expirationMinutes": 20,
        "monitoringMinutes": 43200,
        "speedPolicy": "MediumSpeed",
        "paymentTolerance": 0,
    }
    assert not asked
    rail = room.till.topups.rails["btcpay"]
    assert rail.uri(told.asset, topup.address, 39017) == f"bitcoin:{invoice.destination}?amount=0.00039017"


@pytest.mark.parametrize(("usd", "policy", "needed"), [(99, "Medium", 1), (100, "LowMedium", 2), (1000, "Low", 6)])
async def test_dearer_topups_need_more_confirmations(room: Room, usd: int, policy: str, needed: int) -> None:
    told, invoice = await room.ask(usd)
    assert invoice.asked["checkout"]["speedPolicy"] == f"{policy}Speed"
    assert told.standing.needed == needed


async def test_paid_in_full_it_is_credited_once_settled_and_once_only(room: Room) -> None:
    told, invoice = await room.ask()
    payment = room.fake.pay(invoice)
    assert await room.later() == ""
    assert await room.state(told) == "seen"
    assert await room.balance() == 0
    room.fake.settle(invoice, payment)
    for _ in range(3):
        assert await room.later() == ""
        assert await room.state(told) == "credited"
        assert await room.balance() == worth(invoice.total) == 25_000_477_010
    (row,) = await room.payments()
    assert row.ident == f"{STORE}:{invoice.id}:BTC-CHAIN:{payment.id}"
    assert (row.tx, row.final, row.account_id) == (payment.id.partition("-")[0], 1, room.alice)
    await room.later(8 * DAY_S)
    assert await room.balance() == worth(invoice.total)
    assert not await room.incidents()


async def test_lightning_is_credited_at_once_and_less_than_a_satoshi_is_left_off(room: Room) -> None:
    told, invoice = await room.ask(25, "BTC-LN")
    assert invoice.asked["checkout"]["paymentMethods"] == ["BTC-LN"]
    assert invoice.total == Decimal("0.00039001256")
    assert int(told.topup.asked_units) == 39002
    rail = room.till.topups.rails["btcpay"]
    assert rail.uri(told.asset, told.topup.address, 39002) == f"lightning:{invoice.destination}"
    payment = room.fake.pay(invoice)
    await room.later()
    assert await room.state(told) == "credited"
    assert await room.balance() == worth(Decimal("0.00039001")) == 24_999_836_005
    (row,) = await room.payments()
    assert (row.tx, row.units, row.asset) == (payment.id, "39001", "BTC-LN")


async def test_less_than_asked_is_credited_as_it_is(room: Room) -> None:
    told, invoice = await room.ask()
    payment = room.fake.pay(invoice, "0.0002")
    await room.later()
    assert await room.state(told) == "seen under"
    room.fake.settle(invoice, payment)
    await room.later()
    assert invoice.status == "New"
    assert await room.state(told) == "credited under"
    assert await room.balance() == worth(Decimal("0.0002"))


async def test_what_is_over_five_percent_more_gets_the_markets_rate_if_that_is_lower(room: Room) -> None:
    """BTCPay would value all of it at its own rate; the published rule does not."""
    told, invoice = await room.ask()
    room.fake.settle(invoice, room.fake.pay(invoice, "0.001"))
    await room.later()
    locked = int(told.topup.asked_units) * 105 // 100
    assert await room.state(told) == "credited over"
    assert await room.balance() == (locked * RATE_NANOS + (100_000 - locked) * MARKET_NANOS) // SATOSHIS


async def test_two_payments_are_two_credits(room: Room) -> None:
    """Two outputs of one transaction, and one of another: each is a payment of its own."""
    told, invoice = await room.ask()
    first = room.fake.pay(invoice, "0.0001")
    second = room.fake.pay(invoice, "0.0001", vout=1, tx=first.id.partition("-")[0])
    room.fake.settle(invoice, first)
    await room.later()
    assert await room.balance() == worth(Decimal("0.0001"))
    third = room.fake.pay(invoice, invoice.total - invoice.paid)
    room.fake.settle(invoice, third)
    room.fake.settle(invoice, second)
    await room.later()
    assert await room.state(told) == "credited several"
    assert await room.balance() == 2 * worth(Decimal("0.0001")) + worth(third.value)


async def test_late_money_is_credited_at_the_markets_rate(room: Room) -> None:
    """The invoice stays Expired and never settles: only its payment does. It is found without any webhook."""
    told, invoice = await room.ask()
    room.pass_s(40 * 60)
    room.fake.expire(invoice)
    await room.look()
    assert await room.state(told) == "expired"
    room.pass_s(2 * DAY_S)
    payment = room.fake.pay(invoice)
    assert invoice.additional == "PaidLate"
    await room.later(HOUR_S)
    assert await room.state(told) == "seen late"
    room.fake.settle(invoice, payment)
    await room.later()
    assert (invoice.status, await room.state(told)) == ("Expired", "credited late")
    assert await room.balance() == worth(invoice.total, MARKET_NANOS)


async def test_money_of_the_last_month_is_found_within_a_day(room: Room) -> None:
    told, invoice = await room.ask()
    await room.later(20 * DAY_S)
    await room.till.topups.tend(room.now_us)
    room.fake.settle(invoice, room.fake.pay(invoice))
    await room.later(HOUR_S)
    assert await room.state(told) == "expired"
    await room.later(DAY_S)
    assert await room.state(told) == "credited late"


async def test_a_payment_that_was_replaced_is_gone_and_its_replacement_counts(room: Room) -> None:
    told, invoice = await room.ask()
    first = room.fake.pay(invoice)
    await room.later()
    room.fake.drop(invoice, first)
    await room.later()
    assert await room.state(told) == "waiting"
    assert [one.state for one in await room.payments()] == ["gone"]
    second = room.fake.pay(invoice)
    room.fake.settle(invoice, second)
    await room.later()
    assert await room.state(told) == "credited"
    assert await room.balance() == worth(invoice.total)


async def test_a_payment_that_is_not_listed_any_more_counts_no_more_until_it_is(room: Room) -> None:
    told, invoice = await room.ask()
    payment = room.fake.pay(invoice)
    await room.later()
    invoice.payments.remove(payment)
    await room.later()
    assert await room.state(told) == "waiting"
    invoice.payments.append(payment)
    room.fake.settle(invoice, payment)
    await room.later()
    assert await room.balance() == worth(invoice.total)


async def test_a_settled_payment_that_turns_invalid_is_taken_back(room: Room) -> None:
    told, invoice = await room.ask()
    payment = room.fake.pay(invoice)
    room.fake.settle(invoice, payment)
    await room.later()
    room.fake.drop(invoice, payment)
    await room.later(HOUR_S)
    assert (await room.state(told), await room.balance()) == ("reversed", 0)
    payment.status = "Settled"
    await room.later(HOUR_S)
    assert (await room.state(told), await room.balance()) == ("credited", worth(invoice.total))


async def test_marked_by_hand_it_credits_nothing_and_is_told_to_the_operator_once(room: Room) -> None:
    told, invoice = await room.ask()
    room.fake.mark_settled(invoice)
    await room.later()
    ((kind, words),) = await room.incidents()
    assert kind == "marked_by_hand"
    assert invoice.id in words
    assert told.topup.id in words
    assert (await room.state(told), await room.balance()) == ("waiting", 0)
    await room.store.write([("UPDATE incident SET closed_at = 1", ())])
    await room.later()
    assert not await room.incidents(), "what was decided is not asked again"


async def test_while_the_server_is_away_nothing_is_lost(room: Room) -> None:
    """It is told once, the offer ends after ten minutes, webhooks wait, and the next look makes up for all of it."""
    told, invoice = await room.ask()
    room.fake.is_down = True
    assert "cannot be asked" in await room.later()
    room.fake.settle(invoice, room.fake.pay(invoice))
    await room.hear(invoice.id)
    await room.later(10 * 60)
    (bitcoin, lightning) = await room.till.topups.offers(room.now_us)
    assert "Bitcoin cannot be watched at the moment" in bitcoin.why_not
    assert "Lightning cannot be watched at the moment" in lightning.why_not
    assert await room.unheard() == 1
    assert [event for event, _ in room.warnings] == ["watcher_failing"]
    room.fake.is_down = False
    assert await room.later(1) == ""
    assert (await room.unheard(), await room.state(told)) == (0, "credited")
    assert [one.why_not for one in await room.till.topups.offers(room.now_us)] == ["", ""]
    assert await room.balance() == worth(invoice.total)


async def test_a_server_that_is_away_is_noticed_though_nobody_pays(room: Room) -> None:
    assert await room.look() == ""
    room.fake.is_down = True
    assert await room.later(30) == ""
    assert "cannot be asked" in await room.later()


async def test_a_webhook_only_says_where_to_look(room: Room) -> None:
    """Sooner than any round; what is unknown, wrong or repeated changes nothing, and none is gone after twice."""
    told, invoice = await room.ask()
    await room.later()
    await room.hear(invoice.id, "1")
    await room.later(1)
    assert (await room.state(told), await room.unheard()) == ("waiting", 0)
    room.fake.settle(invoice, room.fake.pay(invoice))
    before = len(room.fake.asked)
    await room.hear("ofNobodyHere", "2")
    await room.later(1)
    assert (await room.unheard(), len(room.fake.asked)) == (0, before)
    await room.hear(invoice.id, "3")
    await room.hear(invoice.id, "4")
    await room.later(1)
    assert len(room.fake.asked) == before + 2
    assert (await room.state(told), await room.balance()) == ("credited", worth(invoice.total))


async def test_rounds_ask_what_is_open_each_minute_and_the_rest_ever_less(room: Room) -> None:
    """Of one that nobody pays: how often it is asked about in the first hour, week, month, and after."""
    _, invoice = await room.ask()

    async def asked_in(seconds: int, step_s: int) -> int:
        room.fake.asked.clear()
        for _ in range(seconds // step_s):
            await room.later(step_s)
            await room.till.topups.tend(room.now_us)
        return room.fake.asked.count(f"GET /api/v1/stores/{STORE}/invoices/{invoice.id}")

    assert await asked_in(20 * 60, 60) in {19, 20, 21}
    assert await asked_in(3 * HOUR_S, 300) == 3
    await room.later(8 * DAY_S)
    assert await asked_in(2 * DAY_S, HOUR_S) == 2
    await room.later(30 * DAY_S)
    assert await asked_in(2 * DAY_S, 6 * HOUR_S) == 0


async def test_a_round_goes_on_where_it_stopped(room: Room) -> None:
    """More open top-ups than one look asks about: the next look goes on, also in another process."""
    pairs = [await room.ask(1) for _ in range(3)]
    now_us = room.now_us
    copies = (
        "INSERT INTO topup (id, account_id, rail, asset, amount_nanos, asked_units, address, reference, rate_nanos, "
        "pricing, needed, state, created_at, ends_at, changed_at) SELECT ?, account_id, rail, asset, amount_nanos, "
        "asked_units, address, ?, rate_nanos, pricing, needed, state, created_at, ends_at, changed_at FROM topup "
        "WHERE id = ?"
    )
    topup_id, template = pairs[0][0].topup.id, pairs[0][1]
    for number in range(60):
        room.fake.invoices[f"copy{number}"] = other = FakeInvoice(template.asked, RATE, now_us // US_PER_S)
        other.id, other.destination = f"copy{number}", template.destination
        await room.store.write([(copies, (f"0{number:03d}", f"copy{number}", topup_id))])
    room.fake.asked.clear()
    await room.later()
    first = {path for path in room.fake.asked if path.count("/") == 6}
    room.pass_s(2)
    again = BtcpayWatcher(room.store, room.till.deposits, BtcpayApi(settings_of(room.fake)))
    await again.look(room.now_us)
    await again.close()
    assert len(first) == 50
    assert len({path for path in room.fake.asked if path.count("/") == 6}) == 63


async def test_two_watchers_at_once_credit_once(room: Room) -> None:
    told, invoice = await room.ask()
    room.fake.settle(invoice, room.fake.pay(invoice))
    await room.hear(invoice.id)
    watchers = [BtcpayWatcher(room.store, room.till.deposits, BtcpayApi(settings_of(room.fake))) for _ in range(4)]
    await asyncio.gather(*(one.look(room.now_us) for one in watchers))
    for one in watchers:
        await one.close()
    assert await room.balance() == worth(invoice.total)
    assert await room.state(told) == "credited"
    assert len(await room.payments()) == 1


async def test_a_crash_before_the_cursor_is_written_loses_and_doubles_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, invoice = await room.ask()
    room.fake.settle(invoice, room.fake.pay(invoice))
    await room.hear(invoice.id)
    room.pass_s(61)
    with monkeypatch.context() as dying:
        dying.setattr(BtcpayWatcher, "_incidents", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await room.look()
    assert await room.unheard() == 1
    await room.look()
    assert (await room.unheard(), await room.state(told)) == (0, "credited")
    assert await room.balance() == worth(invoice.total)


async def test_server_and_books_are_compared_day_by_day(room: Room) -> None:
    """Paid, half paid, late and unpaid agree; what came since yesterday waits; what the books lack is told."""
    for coins in (None, "0.0002", "0.001", None):
        _, invoice = await room.ask()
        room.fake.settle(invoice, room.fake.pay(invoice, coins))
    told, lightning = await room.ask(10, "BTC-LN")
    room.fake.pay(lightning)
    _, unpaid = await room.ask()
    foreign = FakeInvoice({**unpaid.asked, "metadata": {"orderId": "shop-7"}}, RATE, room.now_us // US_PER_S)
    room.fake.invoices[foreign.id] = foreign
    room.fake.settle(foreign, room.fake.pay(foreign))
    await room.later()
    reconciler = room.till.reconciler
    chain, ln = await reconciler.compare(room.now_us)
    assert (chain.differences, chain.looked_at, chain.chain_units) == ((), 4, 2 * 39002 + 20_000 + 100_000)
    assert (ln.differences, ln.looked_at, ln.chain_units) == ((), 1, 15600)
    await room.later(DAY_S)
    await room.till.topups.tend(room.now_us)
    late = room.fake.pay(unpaid, "0.0003")
    room.fake.settle(unpaid, late)
    assert [one.differences for one in await reconciler.compare(room.now_us)] == [(), ()]
    payment = (await room.told(told.topup.id)).payments[0]
    forgotten = [
        ("DELETE FROM payment WHERE id = ?", (payment.id,)),
        ("DELETE FROM topup WHERE id = ?", (told.topup.id,)),
    ]
    await room.store.write(forgotten)
    room.pass_s(2 * DAY_S)
    await room.look()
    chain, ln = await reconciler.compare(room.now_us)
    assert (chain.differences, chain.looked_at) == ((), 5)
    assert ln.differences == (f"{lightning.destination} on Lightning holds 0.000156 BTC-LN, the books know of 0 there",)
    assert [kind for kind, _ in await room.incidents()] == ["difference"]


async def test_a_payment_that_the_server_takes_back_behind_our_back_is_a_difference(room: Room) -> None:
    _, invoice = await room.ask()
    payment = room.fake.pay(invoice)
    room.fake.settle(invoice, payment)
    await room.later()
    room.fake.drop(invoice, payment)
    outcome, _ = await room.till.reconciler.compare(room.now_us)
    assert len(outcome.differences) == 1
    room.fake.is_down = True
    outcome, _ = await room.till.reconciler.compare(room.now_us)
    assert "cannot be asked" in outcome.error
