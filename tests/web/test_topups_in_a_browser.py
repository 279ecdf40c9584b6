"""The pages of top-ups in a real browser: every state without barriers or a sideways scroll; the countdown counts."""

import re
from typing import Final, Literal

import pytest
from msgspec.structs import replace
from playwright.async_api import Browser, expect

from farebox.money import NANOS_PER_USD
from farebox.payments.incidents import opened
from farebox.payments.rails import Sighting
from farebox.payments.simulated import simulated_payment
from tests.databases import on_sqlite
from tests.stage import OpenStage, Stage
from tests.web.browse import enter
from tests.web.operators import enter_admin
from tests.web.test_browser import chromium, lend, look, open_window

pytestmark = on_sqlite  # a page looks the same whatever is behind it

__all__ = ["chromium"]
STATES: Final[dict[str, tuple[tuple[int, int, str], ...]]] = {
    "waiting": (),
    "seen": ((25_000, 0, "1"),),
    "confirming": ((25_000, 1, "1"),),
    "under": ((10_000, 1, "1"),),
    "several and over": ((20_000, 2, "1"), (20_000, 2, "2")),
    "gone": ((25_000, 0, "1"), (25_000, -1, "1")),
    "reversed": ((25_000, 2, "1"), (25_000, -1, "1")),
}
"""What is seen of payments, one after the other: units, confirmations, which."""


async def open_topup(stage: Stage, payments: tuple[tuple[int, int, str], ...]) -> str:
    """Open a top-up of 25 dollars of alice's, and let payments for it be seen so deep; answers its path."""
    till, now = stage.parts.till, stage.gateway.clock()
    topup_id = await till.topups.open(stage.alice.account_id, "simulated:BTC", 25 * NANOS_PER_USD, now)
    topup = await till.topups.find(stage.alice.account_id, topup_id)
    for units, confirmations, which in payments:
        seen = replace(simulated_payment(topup, units, now), ident=f"{topup_id}-{which}", confirmations=confirmations)
        await till.deposits.apply([seen], now)
    return f"/dashboard/topup/{topup_id}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_state_is_told_without_barriers(
    chromium: Browser, open_stage: OpenStage, scheme: Literal["light", "dark"]
) -> None:
    async with open_stage("[payments]\nsimulated = true\nopen_at_once = 20\n") as stage:
        visitor = await enter(stage, stage.alice.email)
        context, window = await open_window(chromium, stage, scheme=scheme)
        await lend(context, stage, visitor.cookies)
        wrong = []
        for payments in STATES.values():
            wrong += await look(window, await open_topup(stage, payments))
        wrong += await look(window, "/dashboard/topup")
        assert wrong == []


async def test_a_countdown_says_what_is_left_and_a_payment_shows_without_a_reload(
    chromium: Browser, open_stage: OpenStage
) -> None:
    async with open_stage("[payments]\nsimulated = true\n") as stage:
        visitor = await enter(stage, stage.alice.email)
        context, window = await open_window(chromium, stage)
        await lend(context, stage, visitor.cookies)
        await window.page.goto(await open_topup(stage, ()))
        left = window.page.locator(".left")
        before = await left.inner_text()
        assert re.fullmatch(r"(29:\d\d|30:00) left", before)
        await expect(left).not_to_have_text(before)
        topups = await stage.parts.till.topups.all_of(stage.alice.account_id)
        now = stage.gateway.clock()
        await stage.parts.till.deposits.apply([simulated_payment(topups[0], 25_000, now)], now)
        await window.page.get_by_role("heading", name="What came").wait_for()
        assert await left.count() == 0
        assert window.complaints == []


async def test_a_change_is_said_once_and_the_button_that_was_pressed_keeps_the_focus(
    chromium: Browser, open_stage: OpenStage
) -> None:
    async with open_stage("[payments]\nsimulated = true\n") as stage:
        visitor = await enter(stage, stage.alice.email)
        context, window = await open_window(chromium, stage)
        await context.grant_permissions(["clipboard-read", "clipboard-write"])
        await lend(context, stage, visitor.cookies)
        page = window.page
        await page.goto(await open_topup(stage, ()))
        button = page.get_by_role("button", name="Copy address")
        await button.click()
        topups = await stage.parts.till.topups.all_of(stage.alice.account_id)
        assert await page.evaluate("navigator.clipboard.readText()") == topups[0].address
        now = stage.gateway.clock()
        part = replace(simulated_payment(topups[0], 10_000, now), confirmations=2)
        await stage.parts.till.deposits.apply([part], now)
        await page.get_by_role("heading", name="What came").wait_for()
        await expect(button).to_be_focused()
        await expect(page.locator("#topup-said")).to_contain_text("$10.00 were added to your balance.")
        assert await page.get_by_role("button", name="Copy amount").count() == 1
        assert window.complaints == []


async def test_a_quote_that_runs_out_while_it_is_looked_at_says_so(chromium: Browser, open_stage: OpenStage) -> None:
    async with open_stage("[payments]\nsimulated = true\n") as stage:
        visitor = await enter(stage, stage.alice.email)
        context, window = await open_window(chromium, stage)
        await lend(context, stage, visitor.cookies)
        path = await open_topup(stage, ())
        soon = stage.gateway.clock() + 2_000_000
        await stage.gateway.store.write([("UPDATE topup SET ends_at = ?", (soon,))])
        await window.page.goto(path)
        await window.page.get_by_text("This quote has expired.").first.wait_for()
        assert await window.page.get_by_text("Send exactly").count() == 0
        assert window.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_operator_sees_every_trouble_without_barriers(
    chromium: Browser, open_stage: OpenStage, scheme: Literal["light", "dark"]
) -> None:
    async with open_stage("[payments]\nsimulated = true\nopen_at_once = 20\n") as stage:
        visitor = await enter_admin(stage)
        context, window = await open_window(chromium, stage, scheme=scheme)
        await lend(context, stage, visitor.cookies)
        wrong = await look(window, "/admin/topups")
        for payments in STATES.values():
            await open_topup(stage, payments)
        now = stage.gateway.clock()
        lost = Sighting(
            rail="simulated",
            ident="lost",
            asset="ETH",
            address="0x" + "8fA1" * 10,
            units=123456789012345678,
            confirmations=2,
            seen_us=now,
            tx="0x" + "be" * 32,
        )
        await stage.parts.till.deposits.apply([lost], now)
        watcher = "INSERT INTO watcher (name, height, tip_at, looked_at, tried_at, error) VALUES (?, ?, ?, ?, ?, ?)"
        compared = (
            "INSERT INTO reconciliation (rail, asset, at, looked_at, chain_units, books_units, differences) "
            "VALUES ('bitcoin', 'BTC', ?, 12, '2', '1', 1)"
        )
        rate = "INSERT INTO rate (id, source, asset, bid_nanos, at, tried_at, error) VALUES (?, ?, ?, ?, ?, ?, ?)"
        await stage.gateway.store.write(
            [
                opened("difference", "bitcoin:BTC:bc1q", "bc1q" + "x7f3" * 14 + " holds more than the books say", now),
                opened("watcher_behind", "bitcoin", "no block for two hours", now),
                (
                    "UPDATE incident SET closed_at = ?, closed_by = 'root', closing = 'waited' WHERE ref = 'bitcoin'",
                    (now,),
                ),
                (watcher, ("bitcoin", 872345, 1, 1, now, "cannot reach 127.0.0.1:8332: connection refused")),
                (rate, ("kraken:BTC", "kraken", "BTC", 64_123_100_000_000, now, now, None)),
                (rate, ("coinbase:BTC", "coinbase", "BTC", None, None, now, "HTTP 503")),
                (compared, (now,)),
            ]
        )
        wrong += await look(window, "/admin/topups?state=expired")
        wrong += await look(window, "/admin/topups")
        assert wrong == []
        for name in ("Incidents", "Stray payments", "Watchers", "Rates", "Top-ups", "Comparisons"):
            region = window.page.get_by_role("region", name=name, exact=True)
            assert await region.evaluate("one => one.scrollWidth <= one.clientWidth"), name
