"""Plan and limits: what the page says is what the books and the configuration say, at this very moment."""

import pytest

from farebox.billing.plans import Plan
from farebox.money import NANOS_PER_USD
from farebox.web.limits import next_plan
from tests.stage import Stage
from tests.web.browse import Page, enter, make_key

USD = NANOS_PER_USD


def uses(page: Page) -> list[tuple[str, int]]:
    """Give the bars: what each is about, and how full it is in percent."""
    return [(bar.get("aria-label", ""), int(bar.get("value", "-1"))) for bar in page.find("meter")]


async def test_use_shows_as_it_is_now_and_runs_out_by_itself(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.get("/dashboard/limits")
    assert uses(page) == [("Requests a minute used", 0), ("Tokens a minute used", 0), ("Calls at once used", 0)]
    now_ns = stage.gateway.clock() * 1000
    update = "UPDATE account SET requests_full_ns = ?, tokens_full_ns = ?, open_holds = 16 WHERE id = ?"
    states = (now_ns + 30 * 10**9, now_ns + 120 * 10**9, stage.alice.account_id)
    await stage.gateway.store.write([(update, states)])
    page = await browser.get("/dashboard/limits")
    (_, requests), (_, tokens), (_, at_once) = uses(page)
    assert 45 <= requests <= 50
    assert (tokens, at_once) == (100, 25)
    assert "16 of 64 used now" in page.words
    assert "The next call waits until there is room" in page.words
    await stage.gateway.store.write([(update, (now_ns - 1, now_ns - 1, stage.alice.account_id))])
    assert [share for _, share in uses(await browser.get("/dashboard/limits"))] == [0, 0, 25]
    await stage.gateway.store.write([("UPDATE account SET open_holds = 0", ())])


async def test_a_call_shows_in_the_bars(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    for _ in range(5):
        assert (await stage.ask(stage.alice))[0] == 200
    page = await browser.get("/dashboard/limits")
    assert f"{stage.gateway.config.plans.get('pro').requests_per_minute} used now, all free in" in page.words


async def test_limits_of_the_accounts_own_count_and_are_named(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    own = "UPDATE account SET requests_per_minute = 7, tokens_per_minute = 1234, concurrent = 3 WHERE id = ?"
    await stage.gateway.store.write([(own, (stage.alice.account_id,))])
    words = (await browser.get("/dashboard/limits")).words
    for told in ("Requests a minute yours", "of 7 used", "of 1,234 used", "of 3 used"):
        assert told in words


async def test_keys_with_a_pace_of_their_own_are_listed(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await make_key(stage, browser, stage.alice.email, "fast")
    await browser.submit(await browser.get("/dashboard/keys"), "/dashboard/keys", name="slow", requests_per_minute="12")
    page = await browser.get("/dashboard/limits")
    assert "slow 12 requests a minute" in page.words
    assert "fast" not in page.words


PLANS = (
    Plan("free", 1, 1, 1, 0),
    Plan("starter", 2, 2, 2, 5 * USD),
    Plan("pro", 3, 3, 3, 50 * USD),
    Plan("house", 4, 4, 4),
)


@pytest.mark.parametrize(
    ("plan", "topped_up", "wanted"),
    [
        ("free", 0, "starter"),
        ("free", 5 * USD - 1, "starter"),
        ("starter", 5 * USD, "pro"),
        ("pro", 50 * USD, None),
        ("pro", 0, None),  # set by hand: top-ups do not move it
        ("house", 5 * USD, None),
        ("free", 7 * USD, None),
    ],
)
def test_the_next_plan_is_the_one_that_top_ups_lead_to(plan: str, topped_up: int, wanted: str | None) -> None:
    mine = next(one for one in PLANS if one.name == plan)
    found = next_plan(PLANS, mine, topped_up)
    assert (found.name if found else None) == wanted
