"""What the page of a top-up says in each state that a payment can be in, also when it is asked for anew."""

from typing import Any

import pytest
from msgspec.structs import replace

from farebox.money import NANOS_PER_USD
from farebox.payments.rails import Asset
from farebox.payments.simulated import simulated_payment
from tests.stage import OpenStage, Stage
from tests.web.browse import Browser, Page, enter

EMAIL = "alice@example.com"
SIMULATED = "[payments]\nsimulated = true\n"
ASKED = 25_000
"""Satoshis of 25 dollars."""
AGES_US = 26 * 3600 * 1_000_000


class Scene:
    """Alice with a top-up of 25 dollars in Bitcoin, and a network that does what it is told."""

    def __init__(self, stage: Stage, browser: Browser, topup_id: str) -> None:
        self.stage = stage
        self.browser = browser
        self.topup_id = topup_id
        self.later_us = 0

    async def see(self, units: int, confirmations: int, ident: str = "first", **changed: Any) -> None:
        till, now = self.stage.parts.till, self.stage.gateway.clock() + self.later_us
        topup = await till.topups.find(self.stage.alice.account_id, self.topup_id)
        seen = replace(simulated_payment(topup, units, now), ident=ident, confirmations=confirmations, **changed)
        await till.deposits.apply([seen], now)

    async def page(self) -> Page:
        page = await self.browser.get(f"/dashboard/topup/{self.topup_id}")
        assert page.status == 200
        assert page.faults() == []
        return page


async def open_scene(stage: Stage) -> Scene:
    browser = await enter(stage, EMAIL)
    offered = await browser.get("/dashboard/topup")
    assert "on Bitcoin · simulated, no real money" in offered.words
    page = await browser.submit(offered, "/dashboard/topup", amount="25", coin="simulated:BTC")
    return Scene(stage, browser, page.path.rpartition("/")[2])


async def test_each_of_several_payments_has_its_line(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        await scene.see(10_000, 5, "first", tx="f1rst")
        await scene.see(20_000, 0, "second", tx="s3c0nd")
        page = await scene.page()
        lines = page.rows("Payments")
        assert [line[1:4] for line in lines] == [
            ["0.0001 BTC", "credited", "$10.00"],
            ["0.0002 BTC", "seen", "–"],
        ]
        assert "You paid more than asked" in page.words
        assert "It came in 2 payments; each is credited by itself" in page.words
        assert "2 payments" in (await scene.browser.get("/dashboard/topup")).words
        await scene.see(20_000, 5, "second", tx="s3c0nd")
        page = await scene.page()
        assert "$30.00 were added to your balance" in page.words
        assert len([link for link in page.links() if "/dashboard/receipts/" in link]) == 2


async def test_what_is_missing_can_be_sent_while_the_quote_holds(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        await scene.see(10_000, 5)
        page = await scene.page()
        assert "0.00015 less than asked" in page.words
        assert "the rest can be sent to the same address" in page.words
        assert "Send exactly 0.00015 BTC" in page.words
        assert "Worth $15.00" in page.words
        await stage.gateway.store.write([("UPDATE topup SET ends_at = created_at + 1", ())])
        page = await scene.page()
        assert "the rest can be sent" not in page.words
        assert "Send exactly" not in page.words


async def test_a_late_payment_says_that_it_is_one(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        scene.later_us = AGES_US
        await scene.see(ASKED, 5)
        assert "It came after the quote had ended, so the market's rate counts" in (await scene.page()).words
        listed = await scene.browser.get("/dashboard/topup")
        assert "late" in listed.words


async def test_a_payment_that_was_replaced_is_told_as_such(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        await scene.see(ASKED, 0)
        await scene.see(ASKED, -1)
        page = await scene.page()
        assert "replaced or dropped" in page.rows("Payments")[0][2]
        assert "Waiting for your payment" in page.words
        await stage.gateway.store.write([("UPDATE topup SET ends_at = 1, created_at = 0", ())])
        assert "replaced or dropped before it was confirmed" in (await scene.page()).words


async def test_a_payment_that_left_its_chain_is_told_by_page_and_mail_and_taken_back(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        before, _ = await stage.balance(stage.alice)
        await scene.see(ASKED, 5)
        assert (await stage.balance(stage.alice))[0] - before == 25 * NANOS_PER_USD
        await scene.see(ASKED, -1)
        assert (await stage.balance(stage.alice))[0] == before
        page = await scene.page()
        assert "Undone by its network" in page.words
        assert "undone" in page.rows("Payments")[0][2]
        mails = await stage.rows("SELECT subject FROM outbox WHERE recipient = ? ORDER BY id", EMAIL)
        assert "was undone" in mails[-1][0]
        await scene.see(ASKED, 5)
        assert "$25.00 were added to your balance" in (await scene.page()).words
        assert (await stage.balance(stage.alice))[0] - before == 25 * NANOS_PER_USD


async def test_a_payment_nobody_had_asked_for_is_listed(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        insert = (
            "INSERT INTO payment (id, rail, asset, address, units, account_id, confirmations, needed, state, epoch, "
            "final, seen_at, changed_at) "
            "VALUES ('simulated:old', 'simulated', 'BTC', 'an old address', '1000', ?, 1, 2, 'confirming', 0, 1, 1, 1)"
        )
        await stage.gateway.store.write([(insert, (stage.alice.account_id,))])
        page = await scene.browser.get("/dashboard/topup")
        assert page.rows("Payments without a quote")[0][1].startswith("0.00001 BTC")


@pytest.mark.parametrize("amount", ["0.5", "20000"])
async def test_an_amount_out_of_bounds_says_the_bounds_of_its_coin(open_stage: OpenStage, amount: str) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        page = await scene.browser.submit(
            await scene.browser.get("/dashboard/topup"), "/dashboard/topup", amount=amount, coin="simulated:ETH"
        )
        assert page.status == 422
        assert "an amount in ETH is from $1 to $10,000" in page.words


async def test_a_payment_just_after_its_quote_is_told_to_have_its_rate(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        scene.later_us = 33 * 60 * 1_000_000
        await scene.see(ASKED, 5)
        page = await scene.page()
        assert "It came after the quote had ended, but soon enough for its rate to count" in page.words
        assert "$25.00 were added" in page.words


async def test_a_confirmed_payment_that_nobody_can_price_says_so(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_rate(*_: object) -> None:
        return None

    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        scene.later_us = AGES_US
        monkeypatch.setattr("farebox.payments.simulated.SimulatedRail.rate", no_rate)
        await scene.see(ASKED, 1, final=True)
        page = await scene.page()
        assert "confirmed. It is credited as soon as it is known what BTC is worth" in page.words


async def test_the_address_of_a_quote_that_has_ended_can_still_be_read(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        scene = await open_scene(stage)
        await stage.gateway.store.write([("UPDATE topup SET ends_at = 1, created_at = 0", ())])
        page = await scene.page()
        ((address,),) = await stage.rows("SELECT address FROM topup")
        assert f"Address {address} It stays watched" in page.words


async def test_what_is_not_to_be_had_says_why_and_the_first_that_is_stands_chosen(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def why_not(_: object, asset: Asset, _now_us: int) -> str:
        return "" if asset.code in had else "nobody can say what it is worth"

    async with open_stage(SIMULATED) as stage:
        monkeypatch.setattr("farebox.payments.simulated.SimulatedRail.why_not", why_not)
        had = {"ETH", "USDT"}
        browser = await enter(stage, EMAIL)
        page = await browser.get("/dashboard/topup")
        coins = {one.get("value"): one for one in page.find("input", name="coin")}
        assert coins["simulated:BTC"].get("disabled") is not None
        assert [name for name, one in coins.items() if one.get("checked") is not None] == ["simulated:ETH"]
        assert "nobody can say what it is worth" in page.words
        refused = await browser.post("/dashboard/topup", {"amount": "25", "coin": "simulated:BTC"})
        assert refused.status == 422
        had = set()
        assert "None of these is to be had just now" in (await browser.get("/dashboard/topup")).words
