"""The pages of top-ups in a real browser: every state without barriers or a sideways scroll; the countdown counts."""

import re
from typing import Final, Literal

import pytest
from msgspec.structs import replace
from playwright.async_api import Browser, expect

from farebox.money import NANOS_PER_USD
from farebox.payments.simulated import simulated_payment
from tests.stage import OpenStage, Stage
from tests.web.browse import enter
from tests.web.test_browser import chromium, lend, look, open_window

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
