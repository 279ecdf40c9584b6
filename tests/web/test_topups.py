"""Adding funds: every state a top-up goes through is told, its money is credited once, and there is a receipt of it."""

import asyncio
import contextlib
import re
from typing import Any

import pytest

from farebox.accounts.accounts import find_account
from farebox.books.ledger import debit
from farebox.errors import BrokenInvariant
from farebox.money import NANOS_PER_USD
from farebox.payments import topups as payments
from farebox.payments.simulated import SimulatedRail
from farebox.payments.topups import OPEN_AT_ONCE, Topups
from tests.stage import OpenStage, Stage
from tests.web.browse import Browser, Page, browser_of, enter, mails_to

EMAIL = "alice@example.com"
SIMULATED = "[payments]\nsimulated = true\n"


async def choose(browser: Browser, amount: str = "25", coin: str = "simulated:BTC") -> Page:
    return await browser.submit(await browser.get("/dashboard/topup"), "/dashboard/topup", amount=amount, coin=coin)


def topups_of(stage: Stage) -> Topups:
    return stage.parts.topups


async def tend_until(stage: Stage, state: str) -> None:
    """Look after top-ups, as the job does, until one has come to a state."""
    for _ in range(10):
        if (state,) in await stage.rows("SELECT state FROM topup"):
            return
        await topups_of(stage).tend(stage.gateway.clock())
    raise AssertionError(f"no top-up is {state}")


async def test_a_topup_goes_through_every_state_and_ends_in_a_receipt(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        before = await find_account(stage.gateway.store, EMAIL)
        page = await choose(browser)
        path = page.path
        assert page.status == 200
        assert page.faults() == []
        assert "Waiting for your payment" in page.words
        assert "0.00025 BTC" in page.words
        assert re.search(r"simulated-[0-9a-f]{28}", page.words)
        assert list(page.find("svg", class_="qr"))
        page = await browser.post(f"{path}/simulate", {"pay": "all"})
        assert "on its way: it is credited after 2 confirmations" in page.words
        await tend_until(stage, "confirming")
        page = await browser.get(path)
        assert "1 of 2 confirmations" in page.words
        assert await find_account(stage.gateway.store, EMAIL) == before, "credited too early"
        await tend_until(stage, "credited")
        page = await browser.get(path)
        assert "$25.00 were added to your balance" in page.words
        after = await find_account(stage.gateway.store, EMAIL)
        assert after.balance_nanos - before.balance_nanos == 25 * NANOS_PER_USD
        assert after.topped_up_nanos - before.topped_up_nanos == 25 * NANOS_PER_USD
        subject, body = (await mails_to(stage, EMAIL))[-1]
        assert "was topped up" in subject
        receipt = await browser.get(re.findall(r"https?://[^/]+(/dashboard/receipts/\S+)", body)[0])
        assert receipt.status == 200
        assert receipt.faults() == []
        assert "$25.00" in receipt.words
        assert "0.00025 BTC on Bitcoin (simulated: no real payment)" in receipt.words


@pytest.mark.parametrize(("pay", "usd", "words"), [("half", 5, "less than asked"), ("double", 20, "more than asked")])
async def test_what_came_is_credited_whatever_was_asked(open_stage: OpenStage, pay: str, usd: int, words: str) -> None:
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        before = (await find_account(stage.gateway.store, EMAIL)).balance_nanos
        path = (await choose(browser, "10", "simulated:ETH")).path
        assert words in (await browser.post(f"{path}/simulate", {"pay": pay})).words
        await tend_until(stage, "credited")
        assert (await find_account(stage.gateway.store, EMAIL)).balance_nanos - before == usd * NANOS_PER_USD


async def test_a_topup_is_credited_once_however_often_it_is_seen(open_stage: OpenStage, monkeypatch: Any) -> None:
    """Also when a process dies between the entry and the word of it: the next look goes on from there."""
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        before = (await find_account(stage.gateway.store, EMAIL)).balance_nanos
        path = (await choose(browser, "10", "simulated:USDT")).path
        topups, now = topups_of(stage), stage.gateway.clock()
        topup = (await topups.all_of(before and (await find_account(stage.gateway.store, EMAIL)).id))[0]
        assert path.endswith(topup.id)
        with monkeypatch.context() as dying:
            dying.setattr(Topups, "_mail", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await topups.observe(topup, int(topup.asked_units), topup.needed, now)
        assert await stage.rows("SELECT state FROM topup") == [("confirming",)]
        await asyncio.gather(*(topups.observe(topup, int(topup.asked_units), topup.needed, now) for _ in range(20)))
        assert await stage.rows("SELECT state FROM topup") == [("credited",)]
        await topups.observe(topup, int(topup.asked_units) * 5, topup.needed, now)
        assert (await find_account(stage.gateway.store, EMAIL)).balance_nanos - before == 10 * NANOS_PER_USD
        assert len([one for one in await mails_to(stage, EMAIL) if "topped up" in one[0]]) >= 1


async def test_more_that_comes_after_a_crash_does_not_keep_the_first_from_being_credited(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry was posted, the word of it was not: what it was posted for stays what the top-up has brought."""
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        before = await find_account(stage.gateway.store, EMAIL)
        await choose(browser, "10", "simulated:USDT")
        topups, now = topups_of(stage), stage.gateway.clock()
        topup = (await topups.all_of(before.id))[0]
        asked = int(topup.asked_units)
        with monkeypatch.context() as dying:
            dying.setattr(Topups, "_mail", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await topups.observe(topup, asked, topup.needed, now)
        await topups.observe(topup, asked * 2, topup.needed + 1, now)
        assert await stage.rows("SELECT state, paid_units FROM topup") == [("credited", str(asked))]
        after = await find_account(stage.gateway.store, EMAIL)
        assert after.balance_nanos - before.balance_nanos == 10 * NANOS_PER_USD


async def test_a_deposit_earns_its_plan(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        person = await stage.person("carol@example.com", plan="free")
        browser = await enter(stage, person.email)
        path = (await choose(browser, "100")).path
        await browser.post(f"{path}/simulate", {"pay": "all"})
        await tend_until(stage, "credited")
        plans = stage.gateway.config.plans
        assert (await find_account(stage.gateway.store, person.email)).plan == plans.earned(100 * NANOS_PER_USD).name


async def test_a_deposit_earns_its_plan_also_when_its_process_dies_before_that(
    open_stage: OpenStage, monkeypatch: Any
) -> None:
    async with open_stage(SIMULATED) as stage:
        person = await stage.person("carol@example.com", plan="free")
        path = (await choose(await enter(stage, person.email), "100")).path
        topups, now = topups_of(stage), stage.gateway.clock()
        account = await find_account(stage.gateway.store, person.email)
        topup = await topups.find(account.id, path.rpartition("/")[2])
        with monkeypatch.context() as dying:
            dying.setattr(payments, "follow_top_ups", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await topups.observe(topup, int(topup.asked_units), topup.needed, now)
        await topups.observe(topup, int(topup.asked_units), topup.needed, now)
        plans = stage.gateway.config.plans
        assert (await find_account(stage.gateway.store, person.email)).plan == plans.earned(100 * NANOS_PER_USD).name


async def test_a_topup_that_cannot_be_credited_keeps_no_other_waiting(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        first, second = [(await choose(browser, "10")).path for _ in range(2)]
        for path in (first, second):
            await browser.post(f"{path}/simulate", {"pay": "all"})
        taken = debit(f"topup:{first.rpartition('/')[2]}", stage.alice.account_id, 1, actor="test", memo="")
        await stage.gateway.ledger.post(taken)
        for _ in range(4):
            with contextlib.suppress(BrokenInvariant):
                await topups_of(stage).tend(stage.gateway.clock())
        states = dict(await stage.rows("SELECT id, state FROM topup"))
        assert states[second.rpartition("/")[2]] == "credited"
        assert states[first.rpartition("/")[2]] == "confirming"
        with pytest.raises(BrokenInvariant, match="cannot be credited"):
            await topups_of(stage).tend(stage.gateway.clock())


async def test_what_nobody_paid_in_time_expires(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        path = (await choose(browser)).path
        await topups_of(stage).tend(stage.gateway.clock() + 31 * 60 * 1_000_000)
        page = await browser.get(path)
        assert "this quote has expired" in page.words
        again = await browser.get(next(link for link in page.links() if "amount=" in link))
        assert again.form("/dashboard/topup")[2]["amount"] == "25.00"
        assert "confirming" not in (await browser.post(f"{path}/simulate", {"pay": "all"})).words


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        ("0.99", "from $1 to $10,000"),
        ("10001", "from $1 to"),
        ("1e3", "such as 25"),
        ("-5", "such as 25"),
        ("", "such as 25"),
    ],
)
async def test_an_amount_that_is_none_is_refused_by_the_field(open_stage: OpenStage, amount: str, words: str) -> None:
    async with open_stage(SIMULATED) as stage:
        page = await choose(await enter(stage, EMAIL), amount)
        assert page.status == 422
        assert words in page.words
        assert page.form("/dashboard/topup")[2]["amount"] == amount
        assert await stage.rows("SELECT count(*) FROM topup") == [(0,)]


async def test_only_so_many_wait_at_once(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        for _ in range(OPEN_AT_ONCE):
            assert (await choose(browser)).status == 200
        page = await choose(browser)
        assert page.status == 422
        assert f"at most {OPEN_AT_ONCE} top-ups" in page.words


async def test_nobody_sees_or_pays_what_is_anothers(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        path = (await choose(await enter(stage, EMAIL))).path
        bob = await enter(stage, "bob@example.com")
        assert (await bob.get(path)).status == 404
        assert (await bob.post(f"{path}/simulate", {"pay": "all"})).status == 404
        assert await stage.rows("SELECT state FROM topup") == [("waiting",)]
        assert (await browser_of(stage).get(path)).path.startswith("/login")


async def test_without_a_rail_nothing_can_be_opened(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        browser = await enter(stage, EMAIL)
        page = await browser.get("/dashboard/topup")
        assert "Coins are not taken here yet" in page.words
        refused = await browser.post("/dashboard/topup", {"amount": "25", "coin": "simulated:BTC"})
        assert refused.status == 422
        assert await stage.rows("SELECT count(*) FROM topup") == [(0,)]


async def test_the_simulated_rail_asks_for_no_less_than_the_amount() -> None:
    rail = SimulatedRail()
    for asset in rail.assets:
        quote = await rail.quote(asset, NANOS_PER_USD // 3)
        assert quote.units > 0
        assert asset.show(quote.units).replace(".", "").strip("0").isdigit()
