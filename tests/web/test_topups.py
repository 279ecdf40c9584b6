"""Adding funds: every state a top-up goes through is told, its money is credited once, and there is a receipt of it."""

import re

import pytest
from msgspec.structs import replace

from farebox.accounts.accounts import find_account
from farebox.money import NANOS_PER_USD
from farebox.payments.simulated import SimulatedRail, SimulatedWatcher, simulated_payment
from farebox.payments.topups import Topups
from tests.stage import OpenStage, Stage
from tests.web.browse import Browser, Page, browser_of, enter, mails_to

EMAIL = "alice@example.com"
SIMULATED = "[payments]\nsimulated = true\n"


async def choose(browser: Browser, amount: str = "25", coin: str = "simulated:BTC") -> Page:
    return await browser.submit(await browser.get("/dashboard/topup"), "/dashboard/topup", amount=amount, coin=coin)


def topups_of(stage: Stage) -> Topups:
    return stage.parts.till.topups


async def confirm_until(stage: Stage, state: str) -> None:
    """Let the simulated network make blocks until a top-up has come to a state."""
    watcher = SimulatedWatcher(stage.gateway.store, stage.parts.till.deposits)
    for _ in range(10):
        if (state,) in await stage.rows("SELECT state FROM topup"):
            return
        await watcher.look(stage.gateway.clock())
    raise AssertionError(f"no top-up is {state}")


async def see(stage: Stage, topup_id: str, units: int, confirmations: int, ident: str = "") -> None:
    """Let a payment for a top-up be seen, so deep."""
    clock = stage.gateway.clock
    ((account_id,),) = await stage.rows("SELECT account_id FROM topup WHERE id = ?", topup_id)
    topup = await topups_of(stage).find(account_id, topup_id)
    seen = simulated_payment(topup, units, clock())
    changed = replace(seen, confirmations=confirmations, ident=ident or seen.ident)
    await stage.parts.till.deposits.apply([changed], clock())


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
        assert "on its way. It is credited after 2 confirmations" in page.words
        await confirm_until(stage, "confirming")
        page = await browser.get(path)
        assert "1 of 2 confirmations" in page.words
        assert "0.00025 BTC" in page.rows("Payments")[0][1]
        assert await find_account(stage.gateway.store, EMAIL) == before, "credited too early"
        await confirm_until(stage, "credited")
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
        assert "1 BTC = $100,000.00, Simulated $100,000.00 at" in receipt.words


@pytest.mark.parametrize(("pay", "usd", "words"), [("half", 5, "less than asked"), ("double", 20, "more than asked")])
async def test_what_came_is_credited_whatever_was_asked(open_stage: OpenStage, pay: str, usd: int, words: str) -> None:
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        before = (await find_account(stage.gateway.store, EMAIL)).balance_nanos
        path = (await choose(browser, "10", "simulated:ETH")).path
        assert words in (await browser.post(f"{path}/simulate", {"pay": pay})).words
        await confirm_until(stage, "credited")
        assert (await find_account(stage.gateway.store, EMAIL)).balance_nanos - before == usd * NANOS_PER_USD


async def test_a_deposit_earns_its_plan(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        person = await stage.person("carol@example.com", plan="free")
        browser = await enter(stage, person.email)
        path = (await choose(browser, "100")).path
        await browser.post(f"{path}/simulate", {"pay": "all"})
        await confirm_until(stage, "credited")
        plans = stage.gateway.config.plans
        assert (await find_account(stage.gateway.store, person.email)).plan == plans.earned(100 * NANOS_PER_USD).name


async def test_what_nobody_paid_in_time_expires(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        browser = await enter(stage, EMAIL)
        path = (await choose(browser)).path
        await stage.gateway.store.write([("UPDATE topup SET ends_at = 1, created_at = 0", ())])
        await topups_of(stage).tend(stage.gateway.clock())
        page = await browser.get(path)
        assert "This quote has expired" in page.words
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
        for _ in range(topups_of(stage).open_at_once):
            assert (await choose(browser)).status == 200
        page = await choose(browser)
        assert page.status == 422
        assert "at most 3 top-ups" in page.words


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
        quote = await rail.quote(1, asset, NANOS_PER_USD // 3, 1)
        assert quote.units > 0
        assert asset.show(quote.units).replace(".", "").strip("0").isdigit()
