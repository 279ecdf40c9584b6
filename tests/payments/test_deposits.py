"""What comes in becomes money once, worth what was published, whatever its chain does and however it is told."""

import asyncio
import random
from collections import Counter
from itertools import permutations
from typing import Any

import pytest

from farebox.accounts.accounts import set_status
from farebox.billing.ledger import Posted, Transfer
from farebox.books.audit import audit
from farebox.books.ledger import Ledger, credit, debit
from farebox.errors import BrokenInvariant
from farebox.payments.addresses import Addresses
from farebox.payments.incidents import open_incidents, opened
from farebox.payments.intervals import interval_ident
from farebox.payments.keys import ExtendedKey
from farebox.payments.settings import FINAL, Depth
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.payments.desk import HOUR_US, PLANS, RAIL, USD, Desk
from tests.payments.wallets import ABOUT, wallet, written

CREDITED = "Your balance at Farebox was topped up"
UNDONE = "A payment to your balance at Farebox was undone"
MINUTE_US = HOUR_US // 60
ADDRESS = "0x" + "a" * 40


async def sound(desk: Desk) -> None:
    broken = [check for check in await audit(desk.store) if not check.ok]
    assert not broken, broken


async def test_a_payment_is_credited_once_with_entry_mail_webhook_and_plan(desk: Desk) -> None:
    topup = await desk.ask(100)
    for confirmations, state in ((0, "seen"), (1, "confirming"), (2, "credited"), (3, "credited"), (9, "credited")):
        for _ in range(2):
            await desk.tell(desk.sees(topup, 100_000, confirmations))
        assert (await desk.told(topup)).topup.state == state
    assert await desk.balance() == 100 * USD
    parties = ("house:cash", f"customer:{desk.alice}")
    assert await desk.entries() == {f"deposit:{RAIL}:p1:1": (*parties, 100 * USD)}
    assert (await desk.mails(), await desk.hooks()) == ([CREDITED], 1)
    assert (await desk.account()).plan == "pro"
    assert (await desk.payment()).transfer_id == f"deposit:{RAIL}:p1:1"
    await sound(desk)


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
async def test_in_whatever_order_it_is_told_it_is_credited_once(desk: Desk, order: tuple[int, ...]) -> None:
    """Two watchers, one of them late: what was said before is said again after the credit."""
    topup = await desk.ask(60)
    said = [desk.sees(topup, 60_000, confirmations) for confirmations in (0, 1, 2, 6)]
    for number in order:
        await desk.tell(said[number], said[number])
    await desk.tell(said[3])
    assert await desk.balance() == 60 * USD
    assert len(await desk.entries()) == 1
    assert await desk.mails() == [CREDITED]
    await sound(desk)


async def test_processes_that_tell_the_same_at_once_credit_once(desk: Desk) -> None:
    """Two of them, each with a connection of its own, over twenty payments to one quote, told in random order."""
    other = await open_store(desk.url, plans=PLANS, clock=lambda: desk.now_us)
    try:
        both = (desk.deposits, desk.another(other, Ledger(other)))
        topup = await desk.ask(1000)
        said = [desk.sees(topup, 100_000, 9, f"p{number}") for number in range(20)]
        for _ in range(3):
            shuffled = [random.sample(said, len(said)) for _ in both]
            await asyncio.gather(*(one.apply(some, desk.now_us) for one, some in zip(both, shuffled, strict=True)))
        await desk.tend(deposits=both)
    finally:
        await other.close()
    payments = await desk.payments()
    assert {one.state for one in payments} == {"credited"}
    assert sum(int(one.locked_units) for one in payments) == 1_050_000, "the quote's rate is good for 105 % once"
    assert await desk.balance() == 2_000 * USD
    assert len(await desk.entries()) == 20
    assert await desk.mails() == [CREDITED] * 20
    assert await desk.hooks() == 20
    await sound(desk)


async def test_processes_that_take_back_at_once_while_money_is_spent_book_each_once(desk: Desk) -> None:
    """What is free changes between their looks: entry and loss still come to what the payment was worth."""
    other = await open_store(desk.url, plans=PLANS, clock=lambda: desk.now_us)
    try:
        both = (desk.deposits, desk.another(other, Ledger(other)))
        topup = await desk.ask(1000)
        for confirmations in (9, -1, 10, -1):
            said = [desk.sees(topup, 50_000, confirmations, f"p{number}") for number in range(12)]
            told = [one.apply(random.sample(said, len(said)), desk.now_us) for one in both]
            await asyncio.gather(*told, *(spend(desk, f"{confirmations}:{number}") for number in range(6)))
            await desk.tend(deposits=both)
            await sound(desk)
    finally:
        await other.close()
    assert {(one.state, one.epoch) for one in await desk.payments()} == {("gone", 4)}
    assert Counter(await desk.mails()) == {CREDITED: 24, UNDONE: 24}


async def spend(desk: Desk, tag: str) -> None:
    """Spend what is free, if anything is."""
    await asyncio.sleep(0)
    free = (await desk.account()).free_nanos
    if free:
        await desk.ledger.post(debit(f"{tag} {desk.now_us}", desk.alice, free, actor="test", memo=""))
    desk.now_us += 1


class TestWorth:
    """By the published rule: the quote's rate for 105 % of what it asked, in time; else the market's."""

    async def test_two_payments_make_up_a_top_up(self, desk: Desk) -> None:
        topup = await desk.ask(100)
        await desk.tell(desk.sees(topup, 60_000, 9), desk.sees(topup, 40_000, 0, "p2"))
        assert (await desk.told(topup)).standing.state == "seen"
        await desk.tell(desk.sees(topup, 40_000, 9, "p2"))
        told = (await desk.told(topup)).standing
        assert (told.state, told.several, told.under, told.credited_nanos) == ("credited", True, False, 100 * USD)

    async def test_too_little_is_credited_all_the_same(self, desk: Desk) -> None:
        topup = await desk.ask(100)
        await desk.tell(desk.sees(topup, 98_999, 9))
        told = (await desk.told(topup)).standing
        assert (told.state, told.under, told.credited_nanos) == ("credited", True, 98_999 * 10**6)
        assert await desk.balance() == 98_999 * 10**6

    @pytest.mark.parametrize(("market", "extra"), [(80_000, 80), (120_000, 100)])
    async def test_beyond_105_percent_the_lower_of_quote_and_market_counts(
        self, desk: Desk, market: int, extra: int
    ) -> None:
        topup = await desk.ask(100)
        desk.rail.market["BTC"] = market * USD
        await desk.tell(desk.sees(topup, 105_000, 9), desk.sees(topup, 100_000, 9, "p2"))
        assert await desk.balance() == (105 + extra) * USD
        assert (await desk.told(topup)).standing.over
        assert [one.locked_units for one in await desk.payments()] == ["105000", "0"]

    async def test_what_comes_late_is_worth_what_the_market_says(self, desk: Desk) -> None:
        topup = await desk.ask(100)
        desk.now_us += 26 * MINUTE_US
        desk.rail.market["BTC"] = 90_000 * USD
        await desk.tend()
        await desk.topups.tend(desk.now_us)
        assert (await desk.told(topup)).topup.state == "expired"
        await desk.tell(desk.sees(topup, 100_000, 9))
        told = await desk.told(topup)
        assert (told.topup.state, told.standing.late, await desk.balance()) == ("credited", True, 90 * USD)

    async def test_seen_in_time_and_confirmed_later_has_the_rate_of_the_quote(self, desk: Desk) -> None:
        topup = await desk.ask(100)
        desk.now_us += 24 * MINUTE_US
        await desk.tell(desk.sees(topup, 100_000, 0))
        desk.now_us += 5 * HOUR_US
        desk.rail.market["BTC"] = 50_000 * USD
        await desk.tell(desk.sees(topup, 100_000, 9))
        assert await desk.balance() == 100 * USD

    async def test_let_hang_for_days_it_is_worth_the_lower_market(self, desk: Desk) -> None:
        topup = await desk.ask(100)
        await desk.tell(desk.sees(topup, 100_000, 0))
        desk.now_us += 48 * HOUR_US
        desk.rail.market["BTC"] = 70_000 * USD
        await desk.tell(desk.sees(topup, 100_000, 9))
        assert await desk.balance() == 70 * USD

    async def test_without_a_quote_the_market_counts(self, desk: Desk) -> None:
        """An address is its owner's for ever, also after its top-ups."""
        key = "INSERT INTO watch_key (fingerprint, family, created_at) VALUES ('f', 'evm', 0)"
        own = (
            "INSERT INTO deposit_address (family, address, key_id, position, account_id, rail, asset, created_at) "
            "SELECT 'evm', ?, id, 0, ?, ?, 'ETH', 0 FROM watch_key"
        )
        await desk.store.write([(key, ()), (own, (ADDRESS, desk.bob, RAIL))])
        await desk.tell(desk.sees(None, 10**18 + 1, 9, "p1", address=ADDRESS, asset="ETH"))
        assert await desk.balance(desk.bob) == 4_000 * USD
        assert (await desk.store.fetch("SELECT used_at FROM deposit_address"))[0][0] == desk.now_us
        await sound(desk)

    async def test_of_unknown_worth_it_waits_until_somebody_can_say(self, desk: Desk) -> None:
        topup = await desk.ask(100)
        desk.now_us += 2 * HOUR_US
        desk.rail.market["BTC"] = None
        await desk.tell(desk.sees(topup, 100_000, 9), desk.sees(topup, 50_000, 9, "p2"))
        assert [one.state for one in await desk.payments()] == ["confirming", "confirming"]
        assert (await desk.balance(), await desk.entries()) == (0, {})
        desk.rail.market["BTC"] = 80_000 * USD
        await desk.tend()
        assert await desk.balance() == 120 * USD

    async def test_many_of_unknown_worth_do_not_stand_in_the_way_of_others(self, desk: Desk) -> None:
        desk.rail.market["ETH"] = 4_000 * USD
        topup, ether = await desk.ask(100), await desk.ask(100, "ETH", desk.bob)
        desk.rail.market["ETH"] = None
        desk.now_us += 2 * HOUR_US
        await desk.tell(*(desk.sees(ether, 10**15, 9, f"e{number}") for number in range(310)))
        await desk.tell(desk.sees(topup, 100_000, 9))
        assert await desk.balance() == 100 * USD
        assert await desk.balance(desk.bob) == 0

    async def test_dust_is_done_with_and_moves_nothing(self, desk: Desk) -> None:
        ether = await desk.ask(100, "ETH")
        await desk.tell(desk.sees(ether, 1, 9))
        payment = await desk.payment()
        assert (payment.state, payment.worth_nanos, payment.transfer_id) == ("credited", 0, None)
        assert (await desk.balance(), await desk.entries()) == (0, {})
        desk.now_us += HOUR_US
        await desk.tell(desk.sees(ether, 1, -1))
        assert (await desk.payment()).state == "gone"
        assert await desk.entries() == {}
        await sound(desk)


class TestDepth:
    async def test_payments_that_are_under_way_together_need_what_their_sum_needs(self, desk: Desk) -> None:
        topup = await desk.ask(1500)
        parts = [desk.sees(topup, 99_000, 1, f"p{number}") for number in range(15)]
        await desk.tell(*parts)
        assert await desk.balance() == 0
        assert {one.needed for one in await desk.payments() if one.state == "confirming"} >= {4}
        await desk.tell(*(desk.sees(topup, 99_000, 3, f"p{number}") for number in range(15)))
        assert await desk.balance() == 0
        await desk.tell(*(desk.sees(topup, 99_000, 4, f"p{number}") for number in range(15)))
        assert await desk.balance() == 15 * 99 * USD

    async def test_where_only_final_will_do_no_number_of_blocks_does(self, desk: Desk) -> None:
        desk.rail.depths = (Depth(FINAL),)
        topup = await desk.ask(100)
        await desk.tell(desk.sees(topup, 100_000, 10_000))
        assert (await desk.payment()).state == "confirming"
        await desk.tell(desk.sees(topup, 100_000, 10_001, final=True))
        assert await desk.balance() == 100 * USD


class TestWhose:
    async def test_a_stray_payment_is_kept_told_of_and_assigned_once(self, desk: Desk) -> None:
        await desk.tell(desk.sees(None, 100_000, 9))
        payment = await desk.payment()
        assert (payment.state, payment.account_id, await desk.incidents()) == ("stray", None, ["stray_payment"])
        done = await asyncio.gather(*(desk.deposits.assign(payment, desk.bob, "ann", desk.now_us) for _ in range(3)))
        assert sorted(done) == [False, False, True]
        assert (await desk.balance(desk.bob), await desk.incidents()) == (100 * USD, [])
        await desk.tell(desk.sees(None, 100_000, 10))
        assert await desk.balance(desk.bob) == 100 * USD
        await sound(desk)

    async def test_a_closed_account_is_given_nothing_until_somebody_decides(self, desk: Desk) -> None:
        topup = await desk.ask(100)
        desk.rail.market["BTC"] = 80_000 * USD  # what counts for bob: the quote was not his
        await set_status(desk.store, desk.alice, "closed")
        await desk.tell(desk.sees(topup, 100_000, 9))
        payment = await desk.payment()
        assert (payment.state, await desk.incidents()) == ("stray", ["closed_account"])
        assert await desk.balance() == 0
        await desk.deposits.assign(payment, desk.alice, "ann", desk.now_us)
        assert ((await desk.payment()).state, await desk.incidents()) == ("stray", ["closed_account"])
        await desk.deposits.assign(payment, desk.bob, "ann", desk.now_us)
        assert (await desk.balance(desk.bob), await desk.incidents()) == (80 * USD, [])
        await sound(desk)

    async def test_a_payment_that_says_something_else_later_is_looked_at_by_people(self, desk: Desk) -> None:
        topup = await desk.pay(100)
        await desk.tell(desk.sees(topup, 999_999, 10))
        assert await desk.incidents() == ["payment_changed"]
        assert (await desk.balance(), (await desk.payment()).units) == (100 * USD, "100000")

    async def test_before_it_is_credited_its_amount_may_change_with_its_block(self, desk: Desk) -> None:
        topup = await desk.ask(100, "ETH")
        await desk.tell(desk.sees(topup, 10**16, 0))
        await desk.tell(desk.sees(topup, 2 * 10**16, 9))
        assert await desk.balance() == 80 * USD

    @pytest.mark.parametrize("turn", [0, 1])
    async def test_two_watchers_of_an_address_cannot_both_be_credited_for_the_same_ether(
        self, desk: Desk, turn: int
    ) -> None:
        """One has seen two payments, the other both at once."""
        topup = await desk.ask(100, "ETH")
        apart = [(0, 10**16), (10**16, 3 * 10**16)]
        told = [
            [desk.sees(topup, end - start, 9, interval_ident(ADDRESS, start, end)) for start, end in spans]
            for spans in (apart, [(0, 3 * 10**16)])
        ]
        await desk.tell(*told[turn])
        await desk.tell(*told[1 - turn])
        await desk.tell(*told[turn], *told[1 - turn])
        assert await desk.balance() == 120 * USD
        await sound(desk)


class TestUndone:
    """A payment that leaves its chain after it was credited is taken back, and credited again should it return."""

    async def test_gone_for_less_than_an_hour_nothing_happens(self, desk: Desk) -> None:
        topup = await desk.pay(100)
        await desk.tell(desk.sees(topup, 100_000, 0))
        await desk.tend(after_us=HOUR_US - 1)
        assert (await desk.payment()).state == "credited"
        await desk.tell(desk.sees(topup, 100_000, 1))
        await desk.tend(after_us=10 * HOUR_US)
        assert (await desk.balance(), len(await desk.entries())) == (100 * USD, 1)
        assert (await desk.incidents(), await desk.mails()) == ([], [CREDITED])

    async def test_after_an_hour_in_no_block_it_is_taken_back(self, desk: Desk) -> None:
        topup = await desk.pay(100)
        await desk.tell(desk.sees(topup, 100_000, 0))
        await desk.tend(after_us=HOUR_US)
        assert (await desk.payment()).state == "gone"
        assert await desk.balance() == 0
        await sound(desk)

    @pytest.mark.parametrize("spent", [0, 40, 100])
    async def test_what_is_free_is_taken_what_was_spent_is_a_loss_and_both_return(self, desk: Desk, spent: int) -> None:
        topup = await desk.pay(100)
        assert (await desk.account()).plan == "pro"
        if spent:
            await desk.spend(spent * USD)
        for _ in range(2):
            await desk.tell(desk.sees(topup, 100_000, -1))
        lost, taken = spent * USD, (100 - spent) * USD
        entries = await desk.entries()
        customer = f"customer:{desk.alice}"
        reversal, loss = f"reversal:{RAIL}:p1:2", f"loss:{RAIL}:p1:2"
        assert entries.get(reversal) == ((customer, "house:cash", taken) if taken else None)
        assert entries.get(loss) == (("house:adjustments", "house:cash", lost) if lost else None)
        account = await desk.account()
        assert (account.balance_nanos, account.plan) == (0, "pro" if account.topped_up_nanos >= 50 * USD else "free")
        assert (account.topped_up_nanos, await desk.incidents()) == (lost, ["reversed"])
        assert (await desk.mails(), (await desk.told(topup)).topup.state) == ([CREDITED, UNDONE], "reversed")
        await sound(desk)

        await desk.tell(desk.sees(topup, 100_000, 9), desk.sees(topup, 100_000, 9))
        entries = await desk.entries()
        assert entries.get(f"deposit:{RAIL}:p1:3") == (("house:cash", customer, taken) if taken else None)
        assert entries.get(f"found:{RAIL}:p1:3") == (("house:cash", "house:adjustments", lost) if lost else None)
        account = await desk.account()
        assert (account.balance_nanos, account.topped_up_nanos, account.plan) == (taken, 100 * USD, "pro")
        assert (await desk.told(topup)).topup.state == "credited"
        assert await desk.mails() == [CREDITED, UNDONE, CREDITED]
        await sound(desk)

    async def test_it_may_happen_again_and_again(self, desk: Desk) -> None:
        topup = await desk.pay(100)
        for turn in range(3):
            await desk.spend(10 * USD, tag=f"spent{turn}")
            await desk.tell(desk.sees(topup, 100_000, -1))
            assert await desk.balance() == 0
            await desk.tell(desk.sees(topup, 100_000, 5 + turn))
            assert await desk.balance() == (90 - 10 * turn) * USD
            await sound(desk)
        assert (await desk.payment()).epoch == 7
        assert await desk.incidents() == ["reversed"] * 3

    async def test_what_returns_for_good_while_it_is_being_taken_back_is_credited(self, desk: Desk) -> None:
        """Its watcher looks at it no more once it is final: nobody would tell of it again."""
        topup = await desk.pay(100)
        await desk.tell(desk.sees(topup, 100_000, -1, final=False))
        await desk.tell(desk.sees(topup, 100_000, 9))
        update = "UPDATE payment SET state = 'reversing', epoch = 4, taken_nanos = worth_nanos"
        await desk.store.write([(update, ())])
        await desk.tell(desk.sees(topup, 100_000, 99, final=True))
        await desk.tend()
        assert ((await desk.payment()).state, await desk.balance()) == ("credited", 100 * USD)
        await sound(desk)

    async def test_what_is_spent_between_decision_and_entry_is_a_loss(self, desk: Desk) -> None:
        await desk.pay(100)
        update = "UPDATE payment SET state = 'reversing', epoch = 2, taken_nanos = worth_nanos, confirmations = -1"
        await desk.store.write([(update, ())])
        await desk.spend(70 * USD)
        await desk.tend()
        entries = await desk.entries()
        assert entries[f"reversal:{RAIL}:p1:2"][2] == 30 * USD
        assert entries[f"loss:{RAIL}:p1:2"][2] == 70 * USD
        await sound(desk)

    async def test_a_process_that_stood_still_takes_nothing_once_all_is_booked_as_a_loss(self, desk: Desk) -> None:
        """It means to take what was free when it looked; then all was spent, another one settled it, and money came."""
        await desk.pay(100)
        update = "UPDATE payment SET state = 'reversing', epoch = 2, taken_nanos = worth_nanos, confirmations = -1"
        await desk.store.write([(update, ())])
        still = Still(desk.store)
        slow = asyncio.create_task(desk.another(desk.store, still).finish(desk.now_us))
        await still.stands.wait()
        await desk.spend(100 * USD)
        await desk.tend()
        await desk.ledger.post(credit("gift", desk.alice, 300 * USD, code="promotion", actor="test", memo=""))
        still.goes_on.set()
        await slow
        assert await desk.balance() == 300 * USD
        assert sum(nanos for name, (*_, nanos) in (await desk.entries()).items() if ":p1:2" in name) == 100 * USD
        assert (await desk.payment()).taken_nanos == 0
        assert await desk.mails() == [CREDITED, UNDONE]
        await sound(desk)

    async def test_how_much_was_taken_back_is_what_the_books_say(self, desk: Desk) -> None:
        """A crash after the entry, which was of less than was meant; meanwhile there is money again."""
        await desk.pay(100)
        update = "UPDATE payment SET state = 'reversing', epoch = 2, taken_nanos = worth_nanos, confirmations = -1"
        await desk.store.write([(update, ())])
        await desk.spend(70 * USD)
        await desk.die_before("loss:")
        await desk.ledger.post(credit("gift", desk.alice, 300 * USD, code="promotion", actor="test", memo=""))
        async with asyncio.timeout(5):
            await desk.tend()
        assert await desk.balance() == 300 * USD
        assert (await desk.entries())[f"loss:{RAIL}:p1:2"][2] == 70 * USD
        assert (await desk.payment()).taken_nanos == 30 * USD
        await sound(desk)


class Still(Ledger):
    """That of a process which stands still before it posts anything."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.stands, self.goes_on = asyncio.Event(), asyncio.Event()

    def post(self, transfer: Transfer) -> asyncio.Future[Posted]:
        async def post() -> Posted:
            self.stands.set()
            await self.goes_on.wait()
            return await super(Still, self).post(transfer)

        return asyncio.ensure_future(post())


class TestManyAndHuge:
    """One payment, or thousands of one customer, are no way to hold up those of all others."""

    async def test_what_no_books_can_hold_is_left_to_a_person_and_holds_up_nobody(self, desk: Desk) -> None:
        mine, his = await desk.ask(100, "ETH"), await desk.ask(100, account=desk.bob)
        await desk.tell(desk.sees(mine, 2**255, 9, "endless"))
        await desk.tell(desk.sees(his, 100_000, 9, "sound"))
        assert (await desk.payment("endless")).state == "stray"
        assert await desk.incidents() == ["stray_payment"]
        assert (await desk.balance(), await desk.balance(desk.bob)) == (0, 100 * USD)
        await desk.tend()
        await sound(desk)

    async def test_what_the_ledger_refuses_stops_no_watcher(self, desk: Desk) -> None:
        most = 2**63 - 1
        assert (await desk.ledger.post(credit("rich", desk.alice, most, code="credit", actor="test", memo=""))).now
        mine, his = await desk.ask(100), await desk.ask(100, account=desk.bob)
        await desk.tell(desk.sees(mine, 100_000, 9, "too much"), desk.sees(his, 100_000, 9, "sound"))
        assert await desk.balance(desk.bob) == 100 * USD
        with pytest.raises(BrokenInvariant):
            await desk.tend()
        assert (await desk.ledger.post(debit("spent", desk.alice, most, actor="test", memo=""))).now
        await desk.tend()
        assert await desk.balance() == 100 * USD

    async def test_dust_is_read_in_proportion(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each row a few times, not each beside each other one."""
        topup, read = await desk.ask(100), 0
        fetch = desk.store.fetch

        async def counted(sql: str, params: tuple[str | int, ...] = ()) -> list[tuple[Any, ...]]:
            nonlocal read
            rows = await fetch(sql, params)
            read += len(rows)
            return rows

        said = [desk.sees(topup, 1, 9, f"p{number}") for number in range(400)]
        monkeypatch.setattr(desk.store, "fetch", counted)
        await desk.tell(*said)
        assert {one.state for one in await desk.payments()} == {"credited"}
        assert read < 400 * 40
        assert (await desk.payment("p7")).locked_units == "1"

    async def test_incidents_that_dust_opens_do_not_hide_others(self, desk: Desk) -> None:
        dust = [opened("closed_account", f"p{number}", "dust", desk.now_us) for number in range(300)]
        await desk.store.write([*dust, opened("reversed", "p1:2", "look", desk.now_us + 1)])
        assert (await open_incidents(desk.store))[0].kind == "reversed"

    async def test_an_address_that_money_came_to_is_given_to_nobody_else(self, desk: Desk) -> None:
        """Books from a backup know of it as nobody's: but somebody was given it, and may pay there again."""
        key = ExtendedKey(written(wallet(ABOUT).derive("m/84h/0h/0h"), "zpub"), "bitcoin")
        first = key.address(0)
        assert first is not None
        await desk.tell(desk.sees(None, 100_000, 9, address=first))
        assert await Addresses(desk.store).fresh(desk.bob, RAIL, "BTC", key, desk.now_us) == key.address(1)
